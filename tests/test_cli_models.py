# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on the command line: a wrong method, exit or file is one line, and no table."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import one_line_error
from float64_vit import Shape, random_state
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

FACE = Shape(28, 16, 2, 3, 48)
TOKEN = Shape(28, 16, 2, 3, 48, head="token")


def state_of(shape: Shape) -> State:
    state = random_state(shape, np.random.default_rng(0))
    return {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.fixture
def folder(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``in`` to score, ``face.pt`` and ``token.pt``, and an old table."""
    folder = gallery.parent
    torch.save(state_of(FACE), folder / "face.pt")
    torch.save(state_of(TOKEN), folder / "token.pt")
    (folder / "out.csv").write_text("old")
    monkeypatch.chdir(folder)
    return folder


def refused(cli: Any, model: str, *options: str) -> str:
    before = sorted(os.listdir())
    heads = () if "--architecture" in options else ("--architecture", "num_heads=2")
    outcome = cli("score", "in", "-o", "out.csv", "--model", model, *heads, *options)
    assert Path("out.csv").read_text() == "old"
    assert sorted(os.listdir()) == before
    return one_line_error(outcome)


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        ("face.pt", "--method vit-fiqa", "needs a ViT-FIQA model"),
        ("face.pt", "--method ex-fiqa --exit 2", "needs a ViT-FIQA model"),
        ("face.pt", "--exit 4", "from 1 to 3, got 4"),
        ("face.pt", "--heads 2", "from 0 to 1, got 2"),
        ("face.pt", "--heads -1", "from 0 to 1, got -1"),
        ("face.pt", "--gauge nowhere.safetensors", "gauge nowhere.safetensors: no such file"),
        ("face.pt", "--gauge face.pt", "gauge face.pt: not a readable safetensors file"),
        ("face.pt", "--gauge face.pt --reduction max", "a gauge belongs to attn-fiqa's mean"),
        ("face.pt", "--gauge face.pt --heads 1", "a gauge belongs to attn-fiqa's mean"),
        ("face.pt", "--architecture num_heads=3", "num_heads must divide embed_dim 16, got 3"),
        ("face.pt", "--architecture patch_size=14", "does not fit a face ViT of patch 14"),
        ("face.pt", "--architecture depth=3", "the number of heads cannot be read from weights"),
        ("face.pt", "--architecture arcface_vit_t", "does not fit a face ViT of patch 9"),
        ("token.pt", "--method vit-fiqa --exit 2", "use ex-fiqa"),
        ("token.pt", "--method vit-fiqa --fusion depth", "use ex-fiqa"),
        ("token.pt", "--method ex-fiqa --exit 4", "from 1 to 3, got 4"),
        ("token.pt", "--method ex-fiqa --reduction max", "belongs to attn-fiqa, not to ex-fiqa"),
        ("token.pt", "--method ex-fiqa --heads average", "belongs to attn-fiqa, not to ex-fiqa"),
        ("token.pt", "--method vit-fiqa --tokens all", "belongs to attn-fiqa, not to vit-fiqa"),
        ("token.pt", "--method vit-fiqa --gauge face.pt", "a gauge belongs to attn-fiqa's mean"),
    ],
)
def test_requests_that_do_not_fit_the_model(
    cli: Any, folder: Path, model: str, options: str, match: str
) -> None:
    assert match in refused(cli, model, *options.split())


def test_outputs_that_the_method_does_not_have(cli: Any, folder: Path) -> None:
    model = ("--model", "token.pt", "--architecture", "num_heads=2", "--method", "ex-fiqa")
    for name in ("patch_map", "query_map", "head_scores"):
        outcome = cli("score", "in", "-o", "new.jsonl", *model, "--outputs", name)
        assert f"ex-fiqa has no {name}" in one_line_error(outcome)
        assert not Path("new.jsonl").exists()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: cut(path, 0), "is empty"),
        (lambda path: cut(path, 1000), "truncated or damaged"),
        (lambda path: cut(path, -100), "truncated or damaged"),
        (flip, "damaged"),
    ],
    ids=["empty", "begun", "nearly whole", "flipped bits"],
)
def test_damaged_files(cli: Any, folder: Path, damage: Callable[[Path], None], match: str) -> None:
    damage(folder / "token.pt")
    assert match in refused(cli, "token.pt", "--method", "vit-fiqa")


@pytest.mark.parametrize("end", [0, 5, 100, -1])
def test_truncated_safetensors(cli: Any, folder: Path, end: int) -> None:
    save_file(state_of(TOKEN), folder / "m.safetensors")
    cut(folder / "m.safetensors", end)
    assert "m.safetensors: " in refused(cli, "m.safetensors", "--method", "vit-fiqa")


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], Any]:
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("qs_token"), "mis-shaped pos_embed [1, 17, 16] where [1, 16, 16]"),
        (without("head_qs.0.running_mean"), "missing head_qs.0.running_mean"),
        (lambda s: s.update({"head_qs.1.bias": torch.zeros(1)}), "unexpected head_qs.1.bias"),
        (changed("head_qs.1.weight", lambda t: t.T), "mis-shaped head_qs.1.weight [16, 1] where"),
        (changed("head_qs.0.bias", lambda t: t / 0), "head_qs.0.bias holds NaN or infinite values"),
        (changed("head_qs.0.running_var", torch.neg), "head_qs.0.running_var holds negative"),
        (changed("qs_token", torch.Tensor.long), "qs_token must hold floating-point values"),
    ],
)
def test_quality_heads_that_are_not_whole(
    cli: Any, folder: Path, change: Callable[[State], Any], match: str
) -> None:
    state = state_of(TOKEN)
    change(state)
    torch.save(state, folder / "token.pt")
    assert match in refused(cli, "token.pt", "--method", "vit-fiqa")


def test_as_a_module_from_another_folder(folder: Path) -> None:
    command = [sys.executable, "-m", "fiqa_fast", "score", "in", "--architecture", "num_heads=2"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], cwd=folder, capture_output=True, text=True, check=False
        )

    refusal = run("--model", "face.pt", "--method", "vit-fiqa")
    assert refusal.returncode == 2
    assert refusal.stdout == ""
    assert len(refusal.stderr.splitlines()) == 1
    assert "needs a ViT-FIQA model" in refusal.stderr
    scores = run("--model", "token.pt", "--method", "vit-fiqa", "--quiet")
    assert scores.returncode == 0, scores.stderr
    assert len(scores.stdout.splitlines()) == 7
