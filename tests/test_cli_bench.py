# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast bench``: what it measures, what it writes, and what it refuses in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import one_line_error

FEW = ("--batch-size", "2", "--repeat", "2", "--threads", "1")


@pytest.mark.parametrize("with_images", [False, True])
def test_bench(cli: Any, gallery: Path, tmp_path: Path, with_images: bool) -> None:
    path = tmp_path / "bench.json"
    inputs = [gallery] if with_images else []
    outcome = cli("bench", *inputs, *FEW, "--dtype", "float32,bfloat16", "-o", path)
    assert outcome.status == 0, outcome.err
    report = json.loads(path.read_text())
    assert report["inputs"] == ([str(gallery)] if with_images else "random")
    assert report["subject"]["threads"] == 1
    (batch,) = report["batches"]
    lines = {(line["name"], line["dtype"]): line for line in batch["lines"]}
    assert list(lines) == [
        (name, dtype)
        for dtype in ("float32", "bfloat16")
        for name in ("fiqa_fast", "eager published")
    ]
    assert lines["eager published", "float32"]["agreement"]["max_error_over_std"] < 1e-5
    ours = lines["fiqa_fast", "float32"]
    assert ours["agreement"]["max_error_over_std"] < 1e-3
    assert ours["agreement"]["spearman"] > 0.99
    # From the same rounds, so not the quotient of the medians.
    turns = [
        p / o
        for p, o in zip(
            lines["eager published", "float32"]["seconds"], ours["seconds"], strict=True
        )
    ]
    assert ours["over_published"]["median"] == pytest.approx(sum(turns) / 2)
    for line in lines.values():
        assert line["images_per_second"]["median"] > 0
    assert "images/s" in outcome.out
    assert "GEMM bound" in outcome.out
    assert "round 2 of 2" in outcome.err


def test_bench_of_an_early_exit_and_another_method(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    architecture = "depth=2,embed_dim=32,quality_head=token"
    model = ("--model", "arcface_vit_t", "--architecture", architecture)
    options = ("--method", "ex-fiqa", "--exit", "1", "--only", "fiqa_fast,eager")
    outcome = cli("bench", *model, *options, *FEW, "-o", path)
    assert outcome.status == 0, outcome.err
    report = json.loads(path.read_text())
    assert report["subject"]["random_weights"]
    assert report["subject"]["options"]["exit"] == 1
    for line in report["batches"][0]["lines"]:
        assert line["agreement"]["max_error_over_std"] < 1e-3
    assert "arcface_vit_t, random weights: ex-fiqa" in outcome.out


def test_bench_tells_what_is_beside_the_race(cli: Any, gallery: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    also = ("--also", "decode,memory,startup", "--only", "fiqa_fast", "--seconds", "0")
    outcome = cli("bench", gallery, *FEW, *also, "-o", path)
    assert outcome.status == 0, outcome.err
    report = json.loads(path.read_text())
    assert set(report["stages"]) == {"float32"}
    (memory,) = report["memory"]
    assert memory["name"] == "fiqa_fast"
    assert "missing" not in memory, memory
    assert report["startup"]["rounds"] == 2
    for text in ("images/s from an archive", "resident MB", "start-up: `fiqa-fast score`"):
        assert text in outcome.out


def test_bench_overwrites_no_model(cli: Any, tmp_path: Path) -> None:
    model = tmp_path / "vit.safetensors"
    model.write_bytes(b"weights")
    message = one_line_error(cli("bench", "--model", model, "-o", model))
    assert "this is an input too, and would be overwritten" in message


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--dtype", "float7"], "dtype must be auto, float32"),
        (["--dtype", "float32,float7"], "'float7'"),
        (["--dtype", ","], "wanted names such as float32,bfloat16"),
        (["--batch-size", "8,x"], "wanted numbers of images such as 1,8,32, got '8,x'"),
        (["--batch-size", "0"], "wanted numbers of images"),
        (["--batch-size", ""], "wanted numbers of images"),
        (["--repeat", "1"], "repeat"),
        (["--seconds", "-1"], "seconds"),
        (["--also", "decode,coffee"], "wanted some of decode, memory, startup, got 'coffee'"),
        (["--exit", "99"], "exit must be a block's number from 1 to 8, got 99"),
        (["--method", "ex-fiqa"], "needs a ViT-FIQA model"),
        (["--method", "magic"], "magic"),
        (["--reduction", "max", "--heads", "77"], "77"),
        (["--device", "toaster"], "toaster"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "arcface_vit_t", "--architecture", "starter"], "is an architecture already"),
        (["--gauge", "none"], "gauge"),  # everyone computes the published score
        (["nowhere"], "nowhere: no such file or directory"),
        (["."], "got none that can be decoded"),
        (["-o", "no/out.json"], "does not exist"),
    ],
)
def test_bad_requests_are_one_line(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no image.jpg").write_bytes(b"text")
    assert match in one_line_error(cli("bench", *args))
    assert os.listdir() == ["no image.jpg"]
