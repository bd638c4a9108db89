# SPDX-License-Identifier: Apache-2.0
"""Scores from files as training code writes them: containers, prefixes, dtypes, registered names.

That every tensor arrives is tested elsewhere; here the file's numbers are compared with the
float64 systems, so that nothing between the file and the score can be mistaken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64_vit import AttentionQuality, Float64ViT, Shape, random_state
from safetensors.torch import save_file

from fiqa_fast import FaceViT, Scorer, load_model

State = dict[str, torch.Tensor]

PREFIXES = ("", "module.", "net.", "model.net.", "module.model.net.")
NESTINGS: dict[str, Callable[[State], Any]] = {
    "raw": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s},
    "arcface": lambda s: {"epoch": 1, "global_step": 9, "state_dict_backbone": s},
    "twice": lambda s: {"model": {"state_dict": s}},
}
SHAPES = {
    "face": Shape(28, 32, 4, 2, 96, classes=10, qkv_bias=True),
    "token": Shape(28, 32, 4, 2, 128, head="token"),
    "crfiqa": Shape(28, 32, 4, 2, 96, head="crfiqa"),
    "full": Shape(28, 32, 4, 2, 64, head="full", qkv_bias=True),
}


def tensors(state: dict[str, np.ndarray], prefix: str = "") -> State:
    return {prefix + name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}


def check(model: FaceViT, shape: Shape, state: dict[str, np.ndarray], count: int = 2) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 3, 112, 112), np.uint8)
    images, reference = torch.from_numpy(pixels), Float64ViT(shape, state, pixels)

    def compare(method: str, name: str, want: np.ndarray) -> None:
        scorer = Scorer(model, method, (name,), dtype="float32", device="cpu")
        got = getattr(scorer(images), name)
        assert np.abs(got.double().numpy() - want).max() <= 1e-5 * np.abs(want).max()

    blocks = [AttentionQuality(logits, shape.prefix) for logits in reference.logits]
    compare("attn-fiqa", "exit_scores", np.stack([block.score("mean") for block in blocks], 1))
    compare("attn-fiqa", "embedding", reference.embedding)
    if reference.exit_scores is not None:
        compare("ex-fiqa", "exit_scores", reference.exit_scores)
        compare("vit-fiqa", "score", reference.exit_scores[:, -1])


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture
def state(shape: Shape) -> dict[str, np.ndarray]:
    return random_state(shape, np.random.default_rng(0))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nesting", NESTINGS)
def test_torch_files(
    shape: Shape, state: dict[str, np.ndarray], prefix: str, nesting: str, tmp_path: Path
) -> None:
    content = NESTINGS[nesting](tensors(state, prefix))
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=prefix != "net.")
    model = load_model(tmp_path / "model.pt", {"num_heads": shape.heads})
    check(model, shape, state)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_safetensors_files(
    shape: Shape, state: dict[str, np.ndarray], prefix: str, tmp_path: Path
) -> None:
    mode = {} if shape.head is None else {"mode": shape.head}
    entry = json.dumps({"num_heads": shape.heads, "norm_layer": "ln", "mask_ratio": 0.1, **mode})
    save_file(tensors(state, prefix), tmp_path / "a.safetensors", {"architecture": entry})
    check(load_model(tmp_path / "a.safetensors"), shape, state)
    save_file(tensors(state, prefix), tmp_path / "b.safetensors")
    check(load_model(tmp_path / "b.safetensors", {"num_heads": shape.heads}), shape, state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_dtype(
    shape: Shape, state: dict[str, np.ndarray], dtype: torch.dtype, tmp_path: Path
) -> None:
    narrow = {n: t if n.endswith("tracked") else t.to(dtype) for n, t in tensors(state).items()}
    narrow["mask_token"] = torch.zeros(1, 1, shape.dim)
    torch.save(narrow, tmp_path / "model.pt")
    model = load_model(tmp_path / "model.pt", {"num_heads": shape.heads})
    check(model, shape, {name: value.double().numpy() for name, value in narrow.items()})


@pytest.mark.parametrize("head", [None, "token"])
@pytest.mark.parametrize("architecture", [None, "arcface_vit_t"])
def test_a_registered_model(head: str | None, architecture: str | None, tmp_path: Path) -> None:
    """Its heads are known from its shapes, with a quality head and without."""
    shape = Shape(9, 256, 8, 12, 1024, classes=20, head=head)
    state = random_state(shape, np.random.default_rng(0))
    torch.save({"state_dict_backbone": tensors(state, "module.")}, tmp_path / "model.pt")
    model = load_model(tmp_path / "model.pt", architecture)
    assert model.config.num_heads == 8
    check(model, shape, state, count=1)
