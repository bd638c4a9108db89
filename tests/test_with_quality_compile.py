# SPDX-License-Identifier: Apache-2.0
"""with_quality and replace_last_attention under torch.compile and torch.export."""

import pytest
import torch
from torch import nn
from vit_zoo import build, fewer, gauge_for, images, plain

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
    assert len(expected) == 1 + len(OUTPUTS)


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


class Breaking(nn.Identity):
    """Where the graph breaks, blocks are compiled one by one from the code that they share."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def test_graph_breaks():
    for place in ("patch_embed.norm", "blocks.0.ls1", "blocks.1.ls2", "fc_norm"):
        model, x = build("timm vit"), images()
        model.set_submodule(place, Breaking())
        wrapped = with_quality(model, OUTPUTS)
        fiqa_fast.replace_last_attention(model)
        torch._dynamo.reset()
        with torch.no_grad():
            expected = wrapped(x)
            got = torch.compile(wrapped, backend="eager")(x)
            torch.compile(model, backend="eager")(x)
        for a, b in zip(plain(got), plain(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fiqa_fast.last_quality(model)[0], expected[1])


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_compiled_one_by_one(in_place):
    model, x = build("timm vit"), images()
    expected = with_quality(model)(x)[1]
    made = fiqa_fast.replace_last_attention(model) if in_place else with_quality(model)
    made(x + 1)  # a last quality that must not stay
    torch._dynamo.reset()
    for block in made.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        output = made(x)
    score = fiqa_fast.last_quality(made)[0] if in_place else output[1]
    torch.testing.assert_close(score, expected)


@pytest.mark.parametrize("name", ["timm vit", "transformers vit"])
def test_compiled_gradient_checkpointing(name):
    model, x = build(name).train(), images()
    expected = with_quality(model)(x)[1]
    if name.startswith("timm"):
        model.set_grad_checkpointing()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch._dynamo.reset()
    output, score = torch.compile(with_quality(model), backend="eager")(x)
    sum(t.sum() for t in plain(output)).backward()
    torch.testing.assert_close(score, expected)
    fiqa_fast.replace_last_attention(model)
    model(x + 1)
    torch.compile(model, backend="eager")(x)
    torch.testing.assert_close(fiqa_fast.last_quality(model)[0], expected)


def test_original_compiled_before():
    """What was compiled of the original must not serve the model with quality."""
    model, x = build("timm vit"), images()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
        expected = with_quality(model)(x)[1]
        torch.testing.assert_close(
            torch.compile(with_quality(model), backend="eager")(x)[1], expected
        )
        fiqa_fast.replace_last_attention(model)
        compiled(x)
    torch.testing.assert_close(fiqa_fast.last_quality(model)[0], expected)


def test_exported_gauge(tmp_path):
    model, x = build("timm vit"), images()
    wrapped = with_quality(model, OUTPUTS, gauge=gauge_for(model))
    with torch.no_grad():
        expected = wrapped(x)
        torch.export.save(torch.export.export(wrapped, (x,)), tmp_path / "model.pt2")
        got = torch.export.load(tmp_path / "model.pt2").module()(x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["timm vit", "transformers vit"])
def test_trace(name):
    wrapped, x = with_quality(build(name)), images()
    with torch.no_grad():
        traced = torch.jit.trace(wrapped, x, strict=False)
        torch.testing.assert_close(traced(x + 1)[1], wrapped(x + 1)[1])
