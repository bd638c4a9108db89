# SPDX-License-Identifier: Apache-2.0
"""with_quality and replace_last_attention under torch.compile and torch.export."""

import pytest
import torch
from vit_zoo import build, fewer, images, plain

import fiqa_fast
from fiqa_fast import with_quality
from fiqa_fast.dropin import OUTPUTS


@fewer
def test_compile(name):
    x = images()
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    with torch.no_grad():
        expected = wrapped(x)
        torch._dynamo.reset()
        compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
        for shift in (0, 1):
            got = compiled(x + shift)
            wanted = wrapped(x + shift)
            for a, b in zip(plain(got), plain(wanted), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        fiqa_fast.replace_last_attention(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for shift in (0, 1):
            compiled(x + shift)
            score, patch_map = fiqa_fast.last_quality(compiled)
            wanted = wrapped(x + shift)
            torch.testing.assert_close(score, wanted[1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(patch_map, wanted[2], rtol=1e-4, atol=1e-4)
    assert len(expected) == 5


def test_inductor():
    x, model = images(), build("timm vit registers")
    wrapped = with_quality(model, OUTPUTS)
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(wrapped, fullgraph=True)(x)
        for a, b in zip(plain(got), plain(wrapped(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@fewer
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
def test_export(name, strict):
    x = images()
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    with torch.no_grad():
        exported = torch.export.export(wrapped, (x,), strict=strict).module()
        for a, b in zip(plain(exported(x + 1)), plain(wrapped(x + 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        # A model that was changed in place exports as it was; the quality stays behind.
        output = model(x)
        fiqa_fast.replace_last_attention(model)
        exported = torch.export.export(model, (x,), strict=strict).module()
        for a, b in zip(plain(exported(x)), plain(output), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_export_with_any_batch():
    wrapped, batch = with_quality(build("timm vit registers"), OUTPUTS), torch.export.Dim("batch")
    shapes = {"x": {0: batch}}  # the model's own argument names
    exported = torch.export.export(wrapped, (images(2),), dynamic_shapes=shapes).module()
    for a, b in zip(exported(images(5)), wrapped(images(5)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
