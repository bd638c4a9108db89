# SPDX-License-Identifier: Apache-2.0
"""with_quality is exact: float64 brute force, on every architecture, in any precision."""

from functools import partial
from pathlib import Path

import pytest
import torch
from vit_zoo import (
    PATCH,
    SIZE,
    ZOO,
    ArcfaceAttention,
    ArcfaceCasting,
    ArcfaceViT,
    brute_force,
    build,
    check,
    few,
    images,
    library,
    plain,
    same,
    timm_vit,
)

import fiqa_fast
from fiqa_fast import with_quality
from fiqa_fast.adapters import custom
from fiqa_fast.dropin import OUTPUTS


@pytest.mark.parametrize("tokens", ["patch", "all"])
@pytest.mark.parametrize("name", ZOO)
def test_equals_brute_force(name, tokens, monkeypatch):
    model, x = build(name), images()
    wrapped = with_quality(model, OUTPUTS, tokens=tokens)
    output, *values = wrapped(x)
    assert values[1].shape == values[2].shape == (3, SIZE // PATCH, SIZE // PATCH)
    expected, size = brute_force(monkeypatch, model, x, ZOO[name][1], tokens)
    assert size > 0.1  # weights that would not tell right from wrong prove nothing
    check(values, expected, size)
    assert same(output, model(x))
    assert type(output) is type(model(x))
    if tokens == "patch":
        torch.testing.assert_close(values[1].mean(dim=(1, 2)), values[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm vit", {"dynamic_img_size": True}),
        ("timm vit dynamic pad", {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("timm eva", {"dynamic_img_size": True, "use_rot_pos_emb": True}),
    ],
)
def test_dynamic_and_oblong_images(name, options, monkeypatch):
    cls = "eva.Eva" if "eva" in name else "vision_transformer.VisionTransformer"
    monkeypatch.setitem(ZOO, name, (partial(timm_vit, cls, **options), 1))
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    for height, width in ((24, 40), (40, 16), (32, 32)):
        x = images(2, height - 3 * ("pad" in name), width)
        output, *values = wrapped(x)
        assert same(output, model(x))
        assert values[1].shape == (2, height // PATCH, width // PATCH)
        expected, size = brute_force(monkeypatch, model, x, 1)
        check(values, expected, size)
    fiqa_fast.replace_last_attention(model)
    model(images(1, 24, 40))
    assert fiqa_fast.last_quality(model)[1].shape == (1, 3, 5)


def test_interpolated_positions():
    model, x = build("transformers vit"), images(2, 24, 40)
    output, patch_map = with_quality(model, ("patch_map",))(x, interpolate_pos_encoding=True)
    assert same(output, model(x, interpolate_pos_encoding=True))
    assert patch_map.shape == (2, 3, 5)


def test_patch_dropout_gives_a_flat_map():
    model = timm_vit(patch_drop_rate=0.5)
    output, patch_map = with_quality(model, ("patch_map",))(images())
    assert patch_map.shape == (3, 8)
    assert with_quality(model.eval(), ("patch_map",))(images())[1].shape == (3, 4, 4)


@few
def test_autocast_and_low_precision(name):
    model, x = build(name), images()
    exact = with_quality(model, OUTPUTS)(x)[1:]
    size = exact[1].abs().max().item() + 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, *values = with_quality(model, OUTPUTS)(x)
        assert same(output, model(x))
        check(values, [e.flatten(1) if e.dim() == 3 else e for e in exact], size, 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        wrapped = with_quality(build(name), OUTPUTS).to(dtype)
        output, *values = wrapped(x.to(dtype))
        assert all(t.dtype == dtype for t in plain(output) if t.is_floating_point())
        check(values, [e.flatten(1) if e.dim() == 3 else e for e in exact], size, 0.2)
    # Converting the wrapper converts the model whose parameters it shares, buffers included.
    model = build(name)
    with_quality(model).to(torch.bfloat16)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {
        torch.bfloat16
    }
    model(x.to(torch.bfloat16))


@pytest.mark.parametrize("verified_in", [torch.float32, torch.bfloat16])
def test_attention_with_casts_of_its_own(verified_in):
    plain_model = build("arcface_torch vit")
    model = ArcfaceViT(attention=ArcfaceCasting).eval()
    model.load_state_dict(plain_model.state_dict())
    wrapped = with_quality(model.to(verified_in), OUTPUTS)
    with torch.no_grad():
        output, *values = wrapped.float()(images())
        assert same(output, model(images()))
        exact = with_quality(plain_model, OUTPUTS)(images())[1:]
    for value, wanted in zip(values, exact, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0.05, atol=0.05)


def test_starter_agrees_with_the_scorer():
    model = fiqa_fast.load_model("starter")
    pixels = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    scorer = fiqa_fast.Scorer(
        model, outputs=("score", "patch_map", "embedding"), device="cpu", dtype="float32"
    )
    wanted = scorer(pixels)
    x = (pixels / 255 - 0.5) / 0.5
    with torch.no_grad():
        embedding, score, patch_map = with_quality(
            model, ("score", "patch_map"), gauge=scorer.gauge
        )(x)
    torch.testing.assert_close(score, wanted.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patch_map, wanted.patch_map, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding, wanted.embedding, rtol=1e-4, atol=1e-4)


def test_documented_examples(monkeypatch):
    library("timm")
    text = Path(__file__).parents[1].joinpath("docs", "dropin.md").read_text(encoding="utf-8")
    first, second, adapter = (part.split("```")[0] for part in text.split("```python\n")[1:])
    scope = {"MyAttention": type("MyAttention", (ArcfaceAttention,), {})}
    monkeypatch.setattr(custom, "_REGISTRY", {})
    exec(first + second, scope)
    assert scope["patch_map"].shape == (2, 14, 14)
    exec("import fiqa_fast\n" + adapter, scope)
    assert custom.registered(scope["MyAttention"](64, 4)).adapter is scope["adapter"]
