# SPDX-License-Identifier: Apache-2.0
"""replace_last_attention and last_quality: the same quality, in place."""

import pytest
import torch
from vit_zoo import build, few, images, same

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
