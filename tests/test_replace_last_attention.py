# SPDX-License-Identifier: Apache-2.0
"""replace_last_attention and last_quality: the same quality, in place."""

import pytest
import torch
from vit_zoo import CvlfaceWrapper, build, few, images, same

import fiqa_fast
from fiqa_fast import with_quality


@few
def test_replace_and_last_quality(name):
    model, x = build(name), images()
    output = model(x)
    _, score, patch_map = with_quality(model, ("score", "patch_map"))(x)
    with pytest.raises(RuntimeError, match="wants a model changed by"):
        fiqa_fast.last_quality(model)
    assert fiqa_fast.replace_last_attention(model) is model
    with pytest.raises(RuntimeError, match="wants a forward pass first"):
        fiqa_fast.last_quality(model)
    for _ in range(2):  # doing it again changes nothing
        assert same(model(x), output)
        last = fiqa_fast.last_quality(model)
        assert torch.equal(last[0], score)
        assert torch.equal(last[1], patch_map)
        fiqa_fast.replace_last_attention(model)
    model(x.flip(0))
    torch.testing.assert_close(fiqa_fast.last_quality(model)[0], score.flip(0))


def test_parts_of_the_model_on_their_own():
    model = fiqa_fast.replace_last_attention(build("timm vit"))
    model(images())
    model.blocks(torch.randn(2, 10, 64))  # tokens of another pass, or of none
    with pytest.raises(RuntimeError, match="or one of a part of the model"):
        fiqa_fast.last_quality(model)
    model.forward_features(images(2))
    assert fiqa_fast.last_quality(model)[1].shape == (2, 4, 4)


def test_around_a_model_with_quality():
    inner, x = with_quality(build("timm vit")), images()
    outer = fiqa_fast.replace_last_attention(CvlfaceWrapper(inner))
    output, score = outer(x)
    assert torch.equal(fiqa_fast.last_quality(outer)[0], score)
    assert same((output, score), inner(x))


def test_attention_gets_its_class_back():
    model = build("timm vit")
    own = type(model.blocks[-1].attn)
    fiqa_fast.replace_last_attention(model)
    made = type(model.blocks[-1].attn)
    assert issubclass(made, own)
    fiqa_fast.replace_last_attention(model)
    assert type(model.blocks[-1].attn) is made
    assert made.__mro__.count(own) == 1
    assert issubclass(type(with_quality(model).blocks[-1].attn), own)
    assert type(model.blocks[-1].attn) is made
