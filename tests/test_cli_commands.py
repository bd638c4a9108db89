# SPDX-License-Identifier: Apache-2.0
"""Help, the other commands, and how options are read."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import fiqa_fast
from fiqa_fast.cli.options import OUTPUTS, parse_architecture


def test_help_is_there_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fiqa_fast.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'numpy', 'pyarrow', 'PIL'} & set(sys.modules)))"
    )
    for args in (["--help"], ["score", "--help"], ["bench", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
        )
        *text, heavy = done.stdout.splitlines()
        assert heavy == "[]"
        if args[-1] == "--help":
            assert (
                "fiqa-fast score crops/" in done.stdout or "fiqa-fast bench crops/" in done.stdout
            )
        else:
            assert text == [f"fiqa-fast {fiqa_fast.__version__}"]


@pytest.mark.parametrize("name", ["score", "heatmap", "calibrate", "bench", "models", "info"])
def test_every_command_has_help_with_examples(cli: Any, name: str) -> None:
    outcome = cli(name, "--help")
    assert outcome.status == 0
    assert "Examples:" in outcome.out
    assert f"fiqa-fast {name}" in outcome.out
    assert name in cli("--help").out


def test_models(cli: Any) -> None:
    from fiqa_fast.models.registry import ARCHITECTURES

    outcome = cli("models")
    assert outcome.status == 0
    entries = json.loads(cli("models", "--json").out)
    assert list(entries) == list(ARCHITECTURES)
    for name, entry in ARCHITECTURES.items():
        assert name in outcome.out
        assert entry.source in outcome.out
        assert entry.terms in outcome.out
        assert entries[name]["config"]["num_heads"] == entry.config.num_heads


def test_info(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cli("info")
    assert outcome.status == 0
    for text in (fiqa_fast.__version__, torch.__version__, "cpu ", "CPU kernels", "CUDA kernels"):
        assert text in outcome.out
    assert set(json.loads(cli("info", "--json").out)) == {"versions", "devices", "kernels"}
    # Where the compiled parts are missing, it says so instead of failing.
    for name in ("_runtime", "_load"):
        monkeypatch.setitem(sys.modules, f"fiqa_fast.{name}", None)
    outcome = cli("info")
    assert outcome.status == 0
    assert "not loaded: ModuleNotFoundError" in outcome.out


def test_the_outputs_of_the_help_are_those_of_the_scorer() -> None:
    from fiqa_fast import scorer

    assert set(OUTPUTS) == set(scorer.OUTPUTS)


def test_architectures_are_parsed() -> None:
    assert parse_architecture(None) is None
    assert parse_architecture("cvlface_vit_small") == "cvlface_vit_small"
    assert parse_architecture("num_heads=8, mlp_ratio=2.5,qkv_bias=True") == {
        "num_heads": 8,
        "mlp_ratio": 2.5,
        "qkv_bias": True,
    }
