# SPDX-License-Identifier: Apache-2.0
"""What an exit leaves out: it may be broken without a trace, and no block runs twice."""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from float64_vit import Shape, random_state

from fiqa_fast import FaceViT, Scorer, ViTConfig
from fiqa_fast._runtime import Network, Pass
from fiqa_fast.engine import native
from fiqa_fast.models.vit import Mlp

DEPTH = 4
HEADS = (None, "token", "crfiqa", "full")
ATTENTION = ("score", "patch_map", "query_map", "head_scores")


def make_model(head: str | None) -> FaceViT:
    """Block n's MLP, which is copied with it, knows its number."""
    shape = Shape(28, 32, 2, DEPTH, 64, head=head, qkv_bias=True)
    config = ViTConfig(28, 32, DEPTH, 2, 2, shape.classes, qkv_bias=True, quality_head=head)
    model = FaceViT(config).requires_grad_(False)
    state = random_state(shape, np.random.default_rng(0))
    model.load_state_dict({name: torch.from_numpy(np.asarray(v)) for name, v in state.items()})
    for number, block in enumerate(model.blocks, 1):
        block.mlp.number = number  # type: ignore[assignment]
    return model


@pytest.fixture(params=HEADS, ids=str)
def model(request: pytest.FixtureRequest) -> FaceViT:
    return make_model(request.param)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)


def poisoned(model: FaceViT, parts: tuple[str, ...], values: int | None = None) -> FaceViT:
    """A copy with NaN in all that these names begin, and in the values of block ``values``."""
    broken = copy.deepcopy(model)
    for name, tensor in broken.state_dict().items():
        if name.startswith(parts) and tensor.is_floating_point():
            tensor.fill_(torch.nan)
    if values is not None:
        projection = broken.blocks[values - 1].attn.qkv
        projection.weight[2 * model.config.embed_dim :] = torch.nan
        projection.bias[2 * model.config.embed_dim :] = torch.nan
    return broken


def after(block: int) -> tuple[str, ...]:
    return tuple(f"blocks.{number - 1}." for number in range(block + 1, DEPTH + 1))


def same(broken: Scorer, whole: Scorer, images: torch.Tensor) -> None:
    got, want = broken(images), whole(images)
    for name in whole.outputs:
        assert getattr(want, name).isfinite().all()
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("exit", range(1, DEPTH + 1))
def test_attention_needs_the_queries_and_keys_of_its_block(
    model: FaceViT, images: torch.Tensor, exit: int
) -> None:
    last = f"blocks.{exit - 1}."
    unused = (f"{last}attn.proj", f"{last}norm2", f"{last}mlp", "norm.", "feature.", "head_qs.")
    broken = poisoned(model, (*after(exit), *unused), values=exit)
    for fusion in (None, "uniform", "depth"):
        run: dict[str, Any] = {"exit": exit, "fusion": fusion, "dtype": "float32"}
        for outputs in (("score",), ATTENTION):
            same(*(Scorer(m, outputs=outputs, **run) for m in (broken, model)), images)
    run = {"exit": exit, "reduction": "median", "dtype": "float32", "heads": 1}
    same(Scorer(broken, **run), Scorer(model, **run), images)


@pytest.mark.parametrize("head", HEADS[1:])
@pytest.mark.parametrize("exit", range(1, DEPTH + 1))
def test_the_quality_head_needs_no_later_block(head: str, images: torch.Tensor, exit: int) -> None:
    model = make_model(head)
    embedding = ("feature.",) if head == "token" else ()  # T reads the quality token alone
    broken = poisoned(model, (*after(exit), *embedding))
    for fusion in (None, "uniform", "depth"):
        run: dict[str, Any] = {"exit": exit, "fusion": fusion, "dtype": "float32"}
        same(*(Scorer(m, "ex-fiqa", **run) for m in (broken, model)), images)


def test_the_embedding_needs_them_all(model: FaceViT, images: torch.Tensor) -> None:
    """Or the tests above would show nothing."""
    for name in ("blocks.3.mlp", "norm.", "feature."):
        broken = poisoned(model, (name,))
        result = Scorer(broken, outputs=("score", "embedding"), exit=1)(images)
        assert result.score.isfinite().all()  # type: ignore[union-attr]
        assert result.embedding.isnan().any()  # type: ignore[union-attr]
        with pytest.raises(AssertionError):
            same(*(Scorer(m, outputs=("embedding",)) for m in (broken, model)), images)


class Ran(NamedTuple):
    """The numbers of the blocks that ran, in order."""

    engine: str
    numbers: list[int]


@pytest.fixture(params=["native", "eager"])
def ran(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ran:
    numbers: list[int] = []
    forward = Mlp.forward

    def watched(self: Mlp, y: torch.Tensor) -> torch.Tensor:
        numbers.append(int(self.number))  # type: ignore[arg-type]
        return forward(self, y)

    def watched_pass(network: Network, first: int, last: int, *rest: Any) -> Pass:
        numbers.extend(range(first + 1, last + 1))
        return Pass(network, first, last, *rest)

    monkeypatch.setattr(Mlp, "forward", watched)
    monkeypatch.setattr(native, "Pass", watched_pass)
    return Ran(request.param, numbers)


def run_once(model: FaceViT, ran: Ran, *args: Any, **options: Any) -> list[int]:
    scorer = Scorer(model, *args, dtype="float32", engine=ran.engine, **options)
    ran.numbers.clear()
    scorer(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))
    return list(ran.numbers)


def test_attention_runs_every_block_before_its_own_once(model: FaceViT, ran: Ran) -> None:
    everything = list(range(1, DEPTH + 1))
    for exit, fusion in itertools.product(everything, (None, "uniform", "depth")):
        for options in ({}, {"reduction": "max"}, {"heads": 0}, {"tokens": "all"}):
            run = {"exit": exit, "fusion": fusion, **options}
            assert run_once(model, ran, "attn-fiqa", ATTENTION, **run) == everything[: exit - 1]
            exits = ("score", "exit_scores")
            assert run_once(model, ran, "attn-fiqa", exits, **run) == everything[:-1]
            every = (*exits, "embedding")
            assert run_once(model, ran, "attn-fiqa", every, **run) == everything


@pytest.mark.parametrize("head", HEADS[1:])
def test_the_quality_head_runs_every_block_once(head: str, ran: Ran) -> None:
    model, everything = make_model(head), list(range(1, DEPTH + 1))
    # The T variant computes the last block that it needs for the quality token alone, elsewhere.
    whole = -1 if head == "token" else 0
    for exit, fusion in itertools.product(everything, (None, "uniform", "depth")):
        run = {"exit": exit, "fusion": fusion}
        assert run_once(model, ran, "ex-fiqa", **run) == everything[: exit + whole]
        exits = ("score", "exit_scores")
        assert run_once(model, ran, "ex-fiqa", exits, **run) == everything[: DEPTH + whole]
        assert run_once(model, ran, "ex-fiqa", (*exits, "embedding"), **run) == everything
    assert run_once(model, ran, "vit-fiqa") == everything[: DEPTH + whole]
