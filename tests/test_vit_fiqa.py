# SPDX-License-Identifier: Apache-2.0
"""ViT-FIQA and EX-FIQA: the reference systems' numbers, every exit and fusion, work left out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fiqa_fast import CheckpointError, FaceViT, Scorer, ViTConfig, load_model, reference
from fiqa_fast.models.vit import Block

DATA = Path(__file__).parent / "data" / "parity"
VARIANTS = ("token", "crfiqa", "full")
COMBINED = ("score", "exit_scores", "embedding")


class Fixture(NamedTuple):
    model: FaceViT
    images: torch.Tensor
    expected: Mapping[str, np.ndarray]

    def run(self, method: str = "ex-fiqa", **options: Any) -> Any:
        return Scorer(self.model, method, dtype="float32", device="cpu", **options)(self.images)


def synthetic() -> torch.Tensor:
    pixels = np.load(DATA / "images_rgb_uint8.npy").transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


@pytest.fixture(params=VARIANTS, scope="module")
def fixture(request: pytest.FixtureRequest) -> Fixture:
    name = f"vitfiqa_{request.param}"
    config = json.loads((DATA / "configs.json").read_text())[name]
    model = load_model(DATA / f"{name}.pt", config)
    assert model.config.quality_head == request.param
    return Fixture(model, synthetic(), dict(np.load(DATA / f"{name}.npz")))


def check(got: torch.Tensor | None, want: np.ndarray) -> None:
    assert got is not None
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert np.abs(got.double().numpy() - want).max() < 1e-5 * np.abs(want).max()


def test_combined_and_score_only(fixture: Fixture) -> None:
    expected = fixture.expected
    combined = fixture.run(outputs=COMBINED)
    check(combined.score, expected["score"])
    check(combined.embedding, expected["embedding"])
    check(combined.exit_scores, expected["exit_scores"])
    check(fixture.run().score, expected["score"])
    check(fixture.run("vit-fiqa").score, expected["score"])
    check(fixture.run("vit-fiqa", outputs=COMBINED).embedding, expected["embedding"])
    check(fixture.run(outputs=("exit_scores",)).exit_scores, expected["exit_scores"])


@pytest.mark.parametrize("outputs", [("score",), ("score", "embedding")])
def test_exits_and_fusions(fixture: Fixture, outputs: tuple[str, ...]) -> None:
    expected = fixture.expected
    check(fixture.run(fusion="uniform", outputs=outputs).score, expected["fused_uniform"])
    check(fixture.run(fusion="depth", outputs=outputs).score, expected["fused_depth_weighted"])
    exits = expected["exit_scores"]
    for number in range(1, 13):
        check(fixture.run(exit=number, outputs=outputs).score, exits[:, number - 1])
    check(fixture.run(fusion="uniform", exit=5, outputs=outputs).score, exits[:, :5].mean(1))


def test_an_exit_runs_no_further_block(fixture: Fixture) -> None:
    for exit, fusion in ((4, None), (4, "depth")):
        ran: list[int] = []
        options: dict[str, Any] = {"dtype": "float32", "exit": exit, "fusion": fusion}
        scorer = Scorer(fixture.model, "ex-fiqa", engine="eager", **options)
        for number, block in enumerate(scorer._engine.vit.blocks, 1):
            if isinstance(block, Block):  # others were not kept
                block.mlp.register_forward_hook(lambda *_, n=number, ran=ran: ran.append(n))
        scorer(fixture.images[:1])
        # The T variant computes its last block for the quality token alone, elsewhere.
        last = exit - 1 if fixture.model.config.quality_head == "token" else exit
        assert ran == list(range(1, last + 1))
        native = Scorer(fixture.model, "ex-fiqa", engine="native", **options)._engine
        assert native.last_stage == native.network.depth == last


def test_attn_fiqa_leaves_the_quality_token_out(fixture: Fixture) -> None:
    normalised = (fixture.images.float() / 255 - 0.5) / 0.5
    logits = reference.block_logits(fixture.model, normalised)
    first = fixture.model.config.num_prefix_tokens
    assert first == (0 if fixture.model.config.quality_head == "crfiqa" else 1)
    patches = torch.stack([x[:, :, first:, first:].mean((1, 2, 3)) for x in logits], 1)
    check(fixture.run("attn-fiqa", outputs=("exit_scores",)).exit_scores, patches.numpy())
    everything = torch.stack([x.mean((1, 2, 3)) for x in logits], 1)
    result = fixture.run("attn-fiqa", outputs=("exit_scores", "patch_map"), tokens="all")
    check(result.exit_scores, everything.numpy())
    received = logits[-1].mean((1, 2))[:, first:].unflatten(1, (12, 12))
    check(result.patch_map, received.numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bitwise_whatever_the_batch_and_the_threads(
    fixture: Fixture, dtype: str, set_threads: Callable[[int], None]
) -> None:
    for outputs in (("score", "exit_scores"), COMBINED):
        scorer = Scorer(fixture.model, "ex-fiqa", outputs, dtype=dtype, fusion="depth")
        set_threads(1)
        want = scorer(fixture.images)
        for threads, size in ((1, 1), (2, 3), (2, 8)):
            set_threads(threads)
            parts = [scorer(part) for part in fixture.images.split(size)]
            for name in outputs:
                got = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(got, getattr(want, name))


def test_weights_of_another_dtype_give_the_same(fixture: Fixture) -> None:
    model = copy.deepcopy(fixture.model).double()
    for outputs in (("score", "exit_scores"), COMBINED):
        options: dict[str, Any] = {"outputs": outputs, "dtype": "float32", "device": "cpu"}
        got = Scorer(model, "ex-fiqa", **options)(fixture.images)
        want = Scorer(fixture.model, "ex-fiqa", **options)(fixture.images)
        for name in outputs:
            assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_bfloat16_stays_close(fixture: Fixture) -> None:
    want = fixture.expected["exit_scores"]
    scorer = Scorer(fixture.model, "ex-fiqa", ("exit_scores",), dtype="bfloat16")
    got = scorer(fixture.images).exit_scores
    assert got is not None
    assert np.abs(got.numpy() - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        ("vit-fiqa", {"exit": 3}, "use ex-fiqa"),
        ("vit-fiqa", {"fusion": "depth"}, "use ex-fiqa"),
        ("ex-fiqa", {"exit": 13}, "from 1 to 12"),
        ("ex-fiqa", {"fusion": "mean"}, "fusion must be"),
        ("ex-fiqa", {"reduction": "max"}, "belongs to attn-fiqa"),
        ("ex-fiqa", {"heads": 0}, "belongs to attn-fiqa"),
        ("ex-fiqa", {"tokens": "all"}, "belongs to attn-fiqa"),
        ("ex-fiqa", {"outputs": ("patch_map",)}, "no patch_map"),
        ("ex-fiqa", {"gauge": "some.safetensors"}, "gauge=None"),
        ("attn-fiqa", {"tokens": "class"}, "tokens must be"),
    ],
)
def test_wrong_options(fixture: Fixture, method: str, options: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Scorer(fixture.model, method, **options)


def test_a_model_without_a_quality_head_is_refused() -> None:
    for method in ("vit-fiqa", "ex-fiqa"):
        with pytest.raises(ValueError, match="quality head"):
            Scorer(load_model("starter"), method)


def test_variants_are_told_apart_by_shape(tmp_path: Path) -> None:
    for variant in VARIANTS:
        config = ViTConfig(28, 16, 2, 2, 3, num_classes=99, quality_head=variant)
        assert config.num_classes == 16
        torch.save(FaceViT(config).state_dict(), tmp_path / "m.pt")
        assert load_model(tmp_path / "m.pt", {"num_heads": 2}).config == config
    state = FaceViT(config).state_dict()
    del state["qs_token"]
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="mis-shaped pos_embed"):
        load_model(tmp_path / "m.pt", {"num_heads": 2})
    with pytest.raises(CheckpointError, match="quality_head must be"):
        load_model(tmp_path / "m.pt", {"num_heads": 2, "mode": "best"})
