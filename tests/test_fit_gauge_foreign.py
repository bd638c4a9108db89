# SPDX-License-Identifier: Apache-2.0
"""Gauges of other libraries' ViTs: applied at every block, and fitted.

That published exit scores are right for every model of the zoo is test_with_quality's.
"""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from vit_zoo import (
    DEPTH,
    SIZE,
    ZOO,
    ArcfaceViT,
    build,
    every_logit,
    gauge_for,
    images,
    same,
    timm_vit,
)

import fiqa_fast
from fiqa_fast import fit_gauge, with_quality
from fiqa_fast.calibrate.foreign import ForeignSubject

COUNT = 30


def crops(count=COUNT, size=SIZE):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    fine = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (fine * 255).to(torch.uint8)


def normalised(pixels):
    return (pixels.float() / 255 - 0.5) / 0.5


def all_means(monkeypatch, model, x, prefix):
    """[B, L]: the mean logit of every block in float64, every logit formed."""
    with every_logit(monkeypatch) as seen:
        copy.deepcopy(model).double()(x.double())
    seen = [block.detach() for block in seen]
    logits = [block[..., prefix:, prefix:] for block in seen[:DEPTH]]
    size = torch.stack([block.abs().mean() for block in logits]).max().item()
    return torch.stack([block.mean((1, 2, 3)) for block in logits], 1), size


# Published and calibrated scores of every block -------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["timm vit registers", "timm eva rope", "transformers dinov2 registers", "torchvision vit",
     "openai clip vision", "fiqa_fast face vit"],
)  # fmt: skip
def test_calibrated_exit_scores(name, monkeypatch):
    """By the gauge's meaning: the mean logits after every key was moved by k0 = -w / scale."""
    model, x = build(name), images().clamp(-3, 3)
    width = ForeignSubject(model, image_size=SIZE).width if name != "fiqa_fast face vit" else 64
    gauge = gauge_for(model, width=width)
    wrapped = with_quality(model, ("exit_scores", "score"), gauge=gauge)
    output, exits, score = wrapped(x)
    assert torch.equal(exits[:, -1], score)
    assert same(output, model(x))
    alone = with_quality(model, gauge=gauge)(x)[1]
    torch.testing.assert_close(score, alone, rtol=1e-6, atol=1e-6)
    if name == "fiqa_fast face vit":
        scorer = fiqa_fast.Scorer(model, outputs=("exit_scores",), gauge=gauge, dtype="float32")
        want = scorer(x, normalized=True).exit_scores
    else:
        subject = ForeignSubject(model, image_size=SIZE, preprocess=lambda pixels: x[: len(pixels)])
        seen = subject.observe(torch.zeros(3, 3, SIZE, SIZE, dtype=torch.uint8))
        expected, size = all_means(monkeypatch, model, x, ZOO[name][1])
        assert (seen.mean_logits - expected).abs().max() < 2e-5 * size
        want = gauge.scale * expected + (seen.phi * gauge.query_weight).sum(-1) + gauge.offset
    torch.testing.assert_close(exits, want, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_a_gauge_is_a_key_shift(monkeypatch):
    """phi of every block, without phi: biases of the keys moved, embedding unmoved."""
    model, x = build("timm vit"), images()
    gauge = gauge_for(model)
    exits = with_quality(model, ("exit_scores",), gauge=gauge)(x)[1]
    moved = copy.deepcopy(model).double()
    with torch.no_grad():
        for block, scale, weight in zip(moved.blocks, gauge.scale, gauge.query_weight, strict=True):
            block.attn.qkv.bias[64:128] += weight / scale
    torch.testing.assert_close(moved(x.double()), model(x), rtol=1e-3, atol=1e-4, check_dtype=False)
    means, _ = all_means(monkeypatch, moved, x, 1)
    want = gauge.scale * means + gauge.offset
    torch.testing.assert_close(exits, want, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_blocks_that_share_compiled_code(monkeypatch):
    """torch.compile serves one block with what it compiled for another, hooks included."""
    monkeypatch.setitem(ZOO, "deep", (partial(timm_vit, depth=5), 1))
    model, x = build("deep"), images()
    gauge = gauge_for(model, depth=5)
    wrapped = with_quality(model, ("exit_scores",), gauge=gauge)
    want = wrapped(x)[1]
    assert want.shape == (3, 5)
    broken = copy.deepcopy(wrapped)
    broken.blocks[1].ls1 = GraphBreak()
    one_by_one = copy.deepcopy(wrapped)
    for block in one_by_one.blocks:
        block.compile(backend="eager")
    torch._dynamo.reset()
    with torch.no_grad():
        for other in (
            torch.compile(broken, backend="eager"), one_by_one,
            torch.compile(wrapped, backend="eager", fullgraph=True),
            pickle.loads(pickle.dumps(wrapped)),
        ):  # fmt: skip
            torch.testing.assert_close(other(x)[1], want, rtol=1e-5, atol=1e-5)


class GraphBreak(nn.Identity):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def test_blocks_that_do_not_run_once_each():
    shared = ArcfaceViT().eval()
    shared.blocks[1] = shared.blocks[0]
    with pytest.raises(fiqa_fast.UnsupportedModelError, match="occurs twice"):
        with_quality(shared, ("exit_scores",))

    class Skipping(ArcfaceViT):
        def forward(self, x):
            first, self.blocks[0].forward = self.blocks[0].forward, lambda x: x
            try:
                return super().forward(x)
            finally:
                self.blocks[0].forward = first

    with pytest.raises(fiqa_fast.UnsupportedModelError, match="each of 2 blocks to run once"):
        with_quality(Skipping().eval(), ("exit_scores",))(images())


# Fitting -----------------------------------------------------------------------------------------


def hand_fit(model, pixels, gauge):
    """The mean patch token after the final norm, and its cosine, with the timm model's own code."""
    tokens = model.forward_features(normalised(pixels))[:, model.num_prefix_tokens :]
    return nn.functional.normalize(tokens.double().mean(1), dim=-1)


def test_fit_applies_and_leaves_the_model(monkeypatch):
    model, pixels = build("timm vit registers").train(), crops()
    calls = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    modes = [module.training for module in model.modules()]
    digest = fiqa_fast.models.state_dict_sha256(model)
    gauge = fit_gauge(model, pixels, copies=8)
    assert fiqa_fast.models.state_dict_sha256(model) == digest == gauge.model_sha256
    assert (gauge.hash, gauge.notes["embedding"]) == ("state_dict", "mean patch token")
    assert [module.training for module in model.modules()] == modes
    assert {n: len(m._forward_hooks) for n, m in model.named_modules()} == hooks
    assert "_fiqa_recorder" not in vars(model)
    model.eval()
    x = normalised(pixels)
    exits = with_quality(model, ("exit_scores",), gauge=gauge)(x)[1]
    published = with_quality(model, ("exit_scores",))(x)[1]
    subject = ForeignSubject(model)
    seen = subject.observe(pixels)
    torch.testing.assert_close(seen.mean_logits, published, rtol=1e-5, atol=1e-5)
    want = gauge.scale * seen.mean_logits + (seen.phi * gauge.query_weight).sum(-1) + gauge.offset
    torch.testing.assert_close(exits, want, rtol=1e-4, atol=1e-5)
    again = fit_gauge(model, pixels, copies=8, workers=1)
    assert again.sha256() == gauge.sha256()
    other = build("timm vit registers", seed=9)
    with pytest.raises(fiqa_fast.CheckpointError, match="another model"):
        with_quality(other, gauge=gauge)


FINAL_NORM = {
    "timm vit registers": lambda m, x: m.forward_features(x)[:, 5:],
    "timm vit no class token": lambda m, x: m.fc_norm(m.forward_features(x)),
    "transformers dinov2": lambda m, x: m(x).last_hidden_state[:, 1:],
    "transformers clip vision": lambda m, x: m.post_layernorm(m(x).last_hidden_state)[:, 1:],
    "torchvision vit": lambda m, x: m.encoder(
        torch.cat([m.class_token.expand(len(x), -1, -1), m._process_input(x)], 1)
    )[:, 1:],
}


@pytest.mark.parametrize("name", FINAL_NORM)
@torch.no_grad()
def test_default_embedding(name):
    model, pixels = build(name), crops(5)
    seen = ForeignSubject(model).observe(pixels)
    want = nn.functional.normalize(FINAL_NORM[name](model, normalised(pixels)).mean(1), dim=-1)
    torch.testing.assert_close(seen.embedding, want, rtol=1e-4, atol=1e-5)


def test_default_embedding_without_a_norm_and_of_tokens_first():
    model = build("timm vit")
    model.norm = nn.Identity()
    seen = ForeignSubject(model).observe(crops(5))
    with torch.no_grad():
        tokens = model.forward_features(normalised(crops(5)))[:, 1:]
    want = nn.functional.normalize(tokens.mean(1), dim=-1)
    torch.testing.assert_close(seen.embedding, want, rtol=1e-4, atol=1e-5)
    model = build("openai clip vision")
    seen = ForeignSubject(model, image_size=SIZE).observe(crops(5))
    kept = []
    model.resblocks.register_forward_hook(lambda _m, _i, out: kept.append(out[1:].mean(0)))
    with torch.no_grad():
        model(normalised(crops(5)))
    want = nn.functional.normalize(kept[0], dim=-1)
    torch.testing.assert_close(seen.embedding, want, rtol=1e-4, atol=1e-5)


def test_own_embedding_and_preprocessing():
    model, pixels = build("timm vit"), crops()
    sizes = []

    def preprocess(batch):
        sizes.append(batch.shape[2:])
        assert batch.dtype == torch.uint8
        return batch / 255

    gauge = fit_gauge(
        model, crops(size=48), copies=8, embedding=lambda out: out, preprocess=preprocess
    )
    assert gauge.notes["embedding"] == "of the model's output"
    assert set(sizes) == {(SIZE, SIZE)}
    subject = ForeignSubject(model, embedding=lambda out: out, preprocess=preprocess)
    with torch.no_grad():
        want = model(pixels[:3] / 255)
    torch.testing.assert_close(subject.observe(pixels[:3]).embedding, want, rtol=1e-5, atol=1e-6)


def test_target_is_the_cosine_to_the_original():
    model, pixels = build("timm vit"), crops()
    gauge = fit_gauge(model, pixels, copies=20, types=("dark",), clean_share=0.2)
    x = normalised(pixels)
    dark = normalised((pixels.float().div(255) ** 4 * 255).round())
    _, clean = with_quality(model, ("exit_scores",), gauge=gauge)(x)
    _, worse = with_quality(model, ("exit_scores",), gauge=gauge)(dark)
    e, d = (
        nn.functional.normalize(model.forward_features(t)[:, 1:].mean(1), dim=-1) for t in (x, dark)
    )
    cosine = (e * d).sum(-1).mean()
    best = int(np.argmax([block["r2"] for block in gauge.notes["blocks"]]))
    assert gauge.notes["blocks"][best]["r2"] > 0.3
    assert clean[:, best].mean() > worse[:, best].mean() + 0.3 * (1 - cosine)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": 0}, "image_size must be"),
        ({"image_size": 17}, "images of 17 x 17.*say image_size="),
        ({"embedding": lambda out: out[0]}, "embedding must return"),
        ({"embedding": lambda out: out * math.nan}, "embedding with a direction"),
        ({"preprocess": lambda pixels: pixels}, "as preprocess makes them"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=text):
        fit_gauge(build("timm vit"), crops(), copies=8, **options)


def test_models_that_cannot_be_read():
    with pytest.raises(ValueError, match="ArcfaceViT does not say the size"):
        fit_gauge(build("arcface_torch vit"), crops(), copies=8)
    with pytest.raises(fiqa_fast.UnsupportedModelError, match="no attention at all"):
        fit_gauge(nn.Sequential(nn.Conv2d(3, 4, 3)), crops())
    with pytest.raises(fiqa_fast.UnsupportedModelError, match="plain model"):
        fit_gauge(with_quality(build("timm vit")), crops())
    gauge = fit_gauge(build("arcface_torch vit"), crops(), copies=8, image_size=SIZE)
    assert gauge.scale.shape == (DEPTH,)


def test_other_heads_of_the_same_weights():
    torch.manual_seed(0)
    gauge = fit_gauge(timm_vit(), crops(), copies=8)
    torch.manual_seed(0)
    with pytest.raises(fiqa_fast.CheckpointError, match="num_heads 4, and this model has 8"):
        with_quality(timm_vit(num_heads=8), gauge=gauge)


def test_torch_s_default_device():
    model, pixels = build("timm vit"), crops()
    gauge = fit_gauge(model, pixels, copies=8)
    with torch.device("meta"):
        assert fit_gauge(model, pixels, copies=8).sha256() == gauge.sha256()
