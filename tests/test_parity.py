# SPDX-License-Identifier: Apache-2.0
"""The reference systems' own numbers, reproduced in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fiqa_fast import FaceViT, Scorer, load_model, reference

DATA = Path(__file__).parent / "data"
MAPS = ("score", "embedding", "patch_map", "query_map", "head_scores", "exit_scores")


class Fixture(NamedTuple):
    model: FaceViT
    images: torch.Tensor
    expected: Mapping[str, np.ndarray]

    def score(self, **options: Any) -> torch.Tensor:
        score = Scorer(self.model, dtype="float32", device="cpu", **options)(self.images).score
        assert score is not None
        return score


@pytest.fixture(params=["cvlface_patch8", "arcface_patch9"], scope="module")
def fixture(request: pytest.FixtureRequest) -> Fixture:
    folder = DATA / "parity"
    config = json.loads((folder / "configs.json").read_text())[request.param]
    model = load_model(folder / f"{request.param}.pt", {"num_heads": config["num_heads"]})
    pixels = np.load(folder / "images_rgb_uint8.npy").transpose(0, 3, 1, 2)
    expected = dict(np.load(folder / f"{request.param}.npz"))
    return Fixture(model, torch.from_numpy(np.ascontiguousarray(pixels)), expected)


def check(got: torch.Tensor | None, want: np.ndarray, unit: float | None = None) -> None:
    """Agreement to 1e-5 of the largest magnitude (or of ``unit``)."""
    assert got is not None
    assert got.dtype == torch.float32
    error = np.abs(got.double().numpy() - want).max() / (unit or np.abs(want).max())
    assert error < 1e-5


def test_every_value_in_one_pass(fixture: Fixture) -> None:
    result = Scorer(fixture.model, outputs=MAPS, dtype="float32", device="cpu")(fixture.images)
    expected = fixture.expected
    check(result.score, expected["score"])
    check(result.embedding, expected["embedding"])
    check(result.head_scores, expected["head_scores"])
    check(result.exit_scores, expected["block_scores"])
    assert result.patch_map is not None
    assert result.query_map is not None
    check(result.patch_map.flatten(1), expected["key_map"])
    check(result.query_map.flatten(1), expected["query_map"])


def test_score_only_is_the_same_number(fixture: Fixture) -> None:
    check(fixture.score(), fixture.expected["score"])
    everything = Scorer(fixture.model, outputs=MAPS, dtype="float32", device="cpu")
    assert torch.equal(fixture.score(), everything(fixture.images).score)


def test_every_exit(fixture: Fixture) -> None:
    for number in range(1, fixture.model.config.depth + 1):
        check(fixture.score(exit=number), fixture.expected["block_scores"][:, number - 1])


def test_reductions_over_all_heads(fixture: Fixture) -> None:
    expected = fixture.expected
    check(fixture.score(reduction="max"), expected["max"])
    check(fixture.score(reduction="inverse_std"), 1 / expected["std_unbiased"])
    check(fixture.score(reduction="median"), expected["median"], expected["logit_std"].min())


def test_reductions_over_averaged_heads(fixture: Fixture) -> None:
    expected = fixture.expected
    check(fixture.score(heads="average"), expected["score"])
    check(fixture.score(heads="average", reduction="max"), expected["headavg_max"])
    inverse = fixture.score(heads="average", reduction="inverse_std")
    check(inverse, 1 / expected["headavg_std_unbiased"])
    median = fixture.score(heads="average", reduction="median")
    check(median, expected["headavg_median"], expected["headavg_std_unbiased"].min())


def test_single_heads(fixture: Fixture) -> None:
    for head in range(fixture.model.config.num_heads):
        check(fixture.score(heads=head), fixture.expected["head_scores"][:, head])


def test_reference_agrees_with_the_reference_systems(fixture: Fixture) -> None:
    """The shipped float64 reference, against which every fast path is tested, is right itself."""
    normalised = (fixture.images.float() / 255 - 0.5) / 0.5
    logits = reference.block_logits(fixture.model, normalised)
    expected = fixture.expected
    for number, block in enumerate(logits):
        assert np.allclose(block.mean((1, 2, 3)), expected["block_scores"][:, number], atol=1e-12)
    last = logits[-1]
    for name, reduction, heads in (
        ("median", "median", "all"),
        ("max", "max", "all"),
        ("headavg_median", "median", "average"),
        ("headavg_max", "max", "average"),
    ):
        value = reference.reduce_logits(last, reduction, heads)
        assert np.allclose(value, expected[name], rtol=1e-9)
    std = 1 / reference.reduce_logits(last, "inverse_std")
    assert np.allclose(std, expected["std_unbiased"], rtol=1e-9)
