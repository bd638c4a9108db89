# SPDX-License-Identifier: Apache-2.0
"""``Scorer`` against the three systems in float64 numpy, on models of many sizes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from float64_vit import AttentionQuality, Float64ViT, Shape, fused, random_state

from fiqa_fast import FaceViT, Scorer, load_model
from fiqa_fast.models.gauge import load_gauge
from fiqa_fast.quality.reductions import REDUCTIONS

State = dict[str, np.ndarray]

TOLERANCE = 1e-5  # of the largest reference value
FUSIONS = (None, "uniform", "depth")
SHAPES = {
    "one_block": Shape(7, 32, 2, 1, 64, classes=5),
    "patch8_mlp5": Shape(8, 64, 8, 3, 320, classes=100),
    "remainder_bias": Shape(9, 48, 4, 2, 192, classes=7, qkv_bias=True),
    "fractional_mlp": Shape(14, 96, 3, 4, 240, qkv_bias=True),
    "wide": Shape(16, 192, 12, 5, 576, classes=512),
    "odd_heads": Shape(16, 36, 3, 2, 54, classes=1),
    "one_head": Shape(28, 40, 1, 3, 120, eps=1e-3, activation="gelu"),
    "head_of_one": Shape(28, 33, 33, 2, 66, qkv_bias=True, eps=1e-6),
    "small_image": Shape(16, 64, 4, 3, 128, image=64),
    "large_image": Shape(16, 32, 2, 2, 96, image=150),
    "four_patches": Shape(32, 32, 4, 2, 64, image=80),
    "token": Shape(9, 64, 4, 4, 256, classes=10, head="token"),
    "token_one_block": Shape(14, 32, 2, 1, 96, head="token", qkv_bias=True),
    "token_gelu": Shape(16, 96, 8, 3, 288, head="token", eps=1e-6, activation="gelu"),
    "crfiqa": Shape(14, 64, 4, 5, 192, classes=10, head="crfiqa"),
    "crfiqa_small_image": Shape(16, 48, 3, 2, 144, head="crfiqa", image=64, qkv_bias=True),
    "full": Shape(8, 48, 6, 3, 192, classes=10, head="full"),
    "full_one_block": Shape(28, 128, 8, 1, 384, head="full", qkv_bias=True, eps=1e-3),
}
WITH_HEAD = [name for name, shape in SHAPES.items() if shape.head is not None]


# All in our kernels; torch's operators are for what those leave to them.
CASES = [(name, "native") for name in SHAPES]
CASES += [(name, "eager") for name in ("remainder_bias", "one_head", "token", "crfiqa", "full")]


def cases(names: list[str]) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if case[0] in names]
    return pytest.mark.parametrize("case", chosen, indirect=True, ids="-".join)


every_model = cases(list(SHAPES))


class Case(NamedTuple):
    shape: Shape
    model: FaceViT
    images: torch.Tensor
    reference: Float64ViT
    engine: str = "native"

    def run(self, method: str, outputs: tuple[str, ...], **options: Any) -> Any:
        settings = {
            "dtype": "float32",
            "device": "cpu",
            "engine": self.engine,
            **options,
        }
        return Scorer(self.model, method, outputs, **settings)(self.images)

    @property
    def exits(self) -> range:
        return range(1, self.shape.depth + 1)

    def choices(self) -> Iterator[dict[str, Any]]:
        """Every kind of choice of tokens and heads."""
        for tokens in ("patch", "all") if self.shape.prefix else ("patch",):
            for heads in ("all", "average", self.shape.heads - 1):
                yield {"tokens": tokens, "heads": heads}

    def attention(self, block: int, **options: Any) -> AttentionQuality:
        return AttentionQuality(self.reference.logits[block - 1], self.shape.prefix, **options)


def random_pictures(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise over patches of one colour, so that images differ by more than their noise."""
    coarse = rng.integers(0, 256, (3, 3, 4, 4), np.uint8).repeat(50, 2).repeat(50, 3)
    noise = rng.integers(0, 256, (3, 3, 200, 200), np.uint8)
    return np.ascontiguousarray((coarse // 2 + noise // 2)[:, :, :size, :size])


def make_case(shape: Shape, seed: int, path: Path, strain: Callable[[State], None]) -> Case:
    rng = np.random.default_rng(seed)
    state = random_state(shape, rng)
    strain(state)
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    images = random_pictures(rng, shape.image)
    model = load_model(path, shape.architecture)
    return Case(shape, model, torch.from_numpy(images), Float64ViT(shape, state, images))


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    name, engine = request.param
    seed = zlib.crc32(name.encode())
    case = make_case(SHAPES[name], seed, path, lambda state: None)
    return case._replace(engine=engine)


def check(got: torch.Tensor | None, want: np.ndarray, unit: float | None = None) -> None:
    assert got is not None
    assert got.dtype == torch.float32
    assert tuple(got.shape) == want.shape
    error = np.abs(got.numpy().astype(np.float64) - want).max()
    assert error <= TOLERANCE * (unit or np.abs(want).max())


@every_model
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_block_and_reduction(case: Case, reduction: str) -> None:
    for options in case.choices():
        blocks = [case.attention(exit, **options) for exit in case.exits]
        want = [block.score(reduction) for block in blocks]
        # Where logits lie close together, a median may take any of them.
        units = [block.spread if reduction == "median" else None for block in blocks]
        run = {"reduction": reduction, **options}
        every = case.run("attn-fiqa", ("exit_scores",), **run).exit_scores
        assert every.shape == (3, case.shape.depth)
        for exit in case.exits:
            check(every[:, exit - 1], want[exit - 1], units[exit - 1])
            alone = case.run("attn-fiqa", ("score",), exit=exit, **run).score
            check(alone, want[exit - 1], units[exit - 1])


@every_model
@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_that_attention_gives(case: Case, fusion: str | None) -> None:
    """Maps, head scores, fusions: alone and together with the embedding of the whole model."""
    for exit in {1, max(1, case.shape.depth - 1), case.shape.depth}:
        for options in case.choices():
            blocks = [case.attention(number, **options) for number in range(1, exit + 1)]
            want = {
                name: fused([getattr(block, name) for block in blocks], fusion)
                for name in ("patch_map", "query_map", "head_scores", "head_maps")
            }
            want["score"] = fused([block.score("mean") for block in blocks], fusion)
            run = {"exit": exit, "fusion": fusion, **options}
            every = ("exit_scores", "exit_maps", "embedding")
            together = case.run("attn-fiqa", (*want, *every), **run)
            for name, values in want.items():
                check(getattr(together, name), values)
                if exit == case.shape.depth:
                    check(getattr(case.run("attn-fiqa", (name,), **run), name), values)
            check(together.embedding, case.reference.embedding)
            exits = [case.attention(number, **options) for number in case.exits]
            check(together.exit_scores, np.stack([exit.score("mean") for exit in exits], 1))
            check(together.exit_maps, np.stack([exit.patch_map for exit in exits], 1))


@every_model
@pytest.mark.parametrize("reduction", ["max", "inverse_std"])
def test_fused_reductions(case: Case, reduction: str) -> None:
    exits = [case.attention(exit).score(reduction) for exit in case.exits]
    for fusion in FUSIONS:
        run = {"reduction": reduction, "fusion": fusion}
        check(case.run("attn-fiqa", ("score",), **run).score, fused(exits, fusion))


@cases(WITH_HEAD)
@pytest.mark.parametrize("more", [(), ("exit_scores",), ("embedding",)])
def test_every_exit_and_fusion_of_the_quality_head(case: Case, more: tuple[str, ...]) -> None:
    exits = case.reference.exit_scores
    assert exits is not None
    for exit in case.exits:
        for fusion in FUSIONS:
            result = case.run("ex-fiqa", ("score", *more), exit=exit, fusion=fusion)
            check(result.score, fused(list(exits[:, :exit].T), fusion))
            if "exit_scores" in more:
                check(result.exit_scores, exits)
            if "embedding" in more:
                check(result.embedding, case.reference.embedding)
    last = case.run("vit-fiqa", ("score", *more))
    check(last.score, exits[:, -1])
    check(case.run("ex-fiqa", ("exit_scores",)).exit_scores, exits)


@every_model
def test_embedding(case: Case) -> None:
    check(case.run("attn-fiqa", ("embedding",)).embedding, case.reference.embedding)
    check(case.run("attn-fiqa", ("embedding",), exit=1).embedding, case.reference.embedding)
    with torch.inference_mode():
        normalised = (case.images.float() / 255 - 0.5) / 0.5
        check(case.model(normalised), case.reference.embedding)


def large_means(state: State) -> None:
    for name in state:
        if name.endswith("running_mean"):
            state[name] += 100


def small_variances(state: State) -> None:
    """So small that batch norm's epsilon shows."""
    for name in state:
        if name.endswith("running_var"):
            state[name] *= 1e-4


def outliers(state: State) -> None:
    """Features that tower above the others all along the residual stream."""
    state["pos_embed"][..., 3] += 200
    state["pos_embed"][..., 7] -= 150


def faint_tokens(state: State) -> None:
    """So faint that layer norm's epsilon shows."""
    for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        state[name] *= np.float32(3e-3)


@pytest.mark.parametrize("strain", [large_means, small_variances, outliers, faint_tokens])
@pytest.mark.parametrize("head", ["token", "crfiqa", "full"])
def test_weights_that_strain_float32(
    head: str, strain: Callable[[State], None], tmp_path: Path
) -> None:
    """What folding and factorising could lose their digits on."""
    case = make_case(Shape(14, 64, 4, 3, 128, head=head), 0, tmp_path / "m.pt", strain)
    exits = case.reference.exit_scores
    assert exits is not None
    for more in ((), ("embedding",)):
        check(case.run("ex-fiqa", ("exit_scores", *more)).exit_scores, exits)
        result = case.run("attn-fiqa", ("exit_scores", "patch_map", *more))
        means = [case.attention(exit).score("mean") for exit in case.exits]
        check(result.exit_scores, np.stack(means, 1))
        check(result.patch_map, case.attention(3).patch_map)
    check(result.embedding, case.reference.embedding)


def test_the_built_in_model_with_and_without_its_gauge() -> None:
    """The same on trained weights: published and calibrated scores of every block."""
    model = load_model("starter")
    config = model.config
    hidden = round(config.mlp_ratio * config.embed_dim)
    shape = Shape(config.patch_size, config.embed_dim, config.num_heads, config.depth, hidden)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    pixels = random_pictures(np.random.default_rng(0), 112)
    reference = Float64ViT(shape, state, pixels)
    images, outputs = torch.from_numpy(pixels), ("exit_scores", "patch_map", "embedding")
    published = Scorer(model, "attn-fiqa", outputs, dtype="float32", gauge=None)(images)
    means = np.stack([block.mean((1, 2, 3)) for block in reference.logits], 1)
    check(published.exit_scores, means)
    check(published.embedding, reference.embedding)

    gauge = load_gauge(model.checkpoint_path.with_name("starter_vit.gauge.safetensors"))
    scale, weight, offset = (
        t.numpy().astype(np.float64) for t in (gauge.scale, gauge.query_weight, gauge.offset)
    )
    shift = np.stack(
        [
            reference.queries[block].mean(2).reshape(len(pixels), -1)
            @ weight[block]
            / (config.num_heads * math.sqrt(config.embed_dim / config.num_heads))
            for block in range(config.depth)
        ],
        1,
    )
    calibrated = Scorer(model, "attn-fiqa", outputs, dtype="float32")(images)
    check(calibrated.exit_scores, scale * means + shift + offset)
    received = reference.logits[-1].mean((1, 2)).reshape(len(pixels), config.grid_size, -1)
    moved = (shift[:, -1] + offset[-1])[:, None, None]
    check(calibrated.patch_map, scale[-1] * received + moved)
