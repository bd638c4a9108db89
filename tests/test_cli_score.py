# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score``: the tables it writes, whatever the images are."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Outcome, face, jpeg, make_broken, table

import fiqa_fast
from fiqa_fast import FaceViT, ViTConfig
from fiqa_fast.images import load_image


def test_score_agrees_with_the_scorer(cli: Any, gallery: Path) -> None:
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    direct = scorer(sorted(gallery.iterdir())).score
    assert direct is not None
    kind = "starter: attn-fiqa, mean, exit 8, calibrated by its gauge; "
    for suffix in ("parquet", "csv", "jsonl", "txt"):
        path = gallery / f"out.{suffix}"  # in the gallery, where it must not be an input
        outcome = cli("score", gallery, "--ext", "png", "-o", path, "--batch-size", 3)
        assert outcome.status == 0, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith(kind)
        assert "7 of 7 images scored" in outcome.err
        assert f"written to {path}" in outcome.err
    names = [f"{i}.png" for i in range(7)]
    assert list(table(gallery / "out.parquet")) == names
    scores = [score for score, _ in table(gallery / "out.parquet").values()]
    assert np.array_equal(np.float32(scores), direct.numpy())
    with open(gallery / "out.csv", newline="") as file:
        assert np.array_equal(np.float32([r["score"] for r in csv.DictReader(file)]), direct)
    lines = (gallery / "out.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == names
    assert np.array_equal(np.float32([line.split()[1] for line in lines]), direct.numpy())


def test_a_second_run_does_not_score_the_first_one_s_table(cli: Any, gallery: Path) -> None:
    path = gallery / "out.parquet"
    tables = []
    for _ in range(2):
        assert cli("score", gallery, "-o", path, "--strict").status == 0
        tables.append(table(path))
    assert tables[0] == tables[1]


def test_parquet_says_what_the_scores_mean(cli: Any, gallery: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    args = ("--gauge", "none", "--exit", 4, "--dtype", "float32", "--quiet")
    assert cli("score", gallery, "-o", path, *args) == Outcome(0, "", "")
    description = json.loads(pq.read_schema(path).metadata[b"fiqa_fast"])
    assert description["exit"] == 4
    assert description["dtype"] == "float32"
    assert description["version"] == fiqa_fast.__version__
    model = fiqa_fast.load_model("starter")
    scorer = fiqa_fast.Scorer(model, exit=4, dtype="float32", gauge=None)
    direct = scorer(sorted(gallery.iterdir())).score
    assert direct is not None
    scores = [score for score, _ in table(path).values()]
    assert np.array_equal(np.float32(scores), direct.numpy())


def test_why_another_engine_was_taken_is_told_and_recorded(
    cli: Any, gallery: Path, tmp_path: Path
) -> None:
    reason = "it computes in float32, bfloat16 or int8, not in float16"
    path = tmp_path / "out.parquet"
    outcome = cli("score", gallery, "-o", path, "--dtype", "float16")
    assert outcome.status == 0, outcome.err
    assert f"; float16 on cpu, eager engine: {reason}\n" in outcome.err
    description = json.loads(pq.read_schema(path).metadata[b"fiqa_fast"])
    assert description["engine"] == "eager"
    assert [build["engine_note"] for build in description["builds"]] == [reason]
    path = tmp_path / "other.parquet"
    assert " engine" not in cli("score", gallery, "-o", path, "--dtype", "float32").err
    description = json.loads(pq.read_schema(path).metadata[b"fiqa_fast"])
    assert "engine_note" not in description["builds"][0]


def test_vector_outputs(cli: Any, gallery: Path, tmp_path: Path) -> None:
    (gallery / "3.png").write_bytes(b"")
    names = fiqa_fast.scorer.OUTPUTS[1:]
    path = tmp_path / "out.parquet"
    outcome = cli("score", gallery, "-o", path, "--outputs", ",".join(names))
    assert outcome.status == 0, outcome.err
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"), outputs=("score", *names))
    good = [p for p in sorted(gallery.iterdir()) if p.name != "3.png"]
    direct = scorer(good)
    got = pq.read_table(path)
    assert got.column_names == ["path", "score", "error", *names]
    for name in names:
        expected = getattr(direct, name).numpy()
        values = got[name].to_pylist()
        assert values.pop(3) is None
        assert np.array_equal(np.float32(values), expected.reshape(len(good), -1))
        shape = json.loads(got.schema.field(name).metadata[b"shape"])
        assert shape == list(expected.shape[1:])
    assert cli("score", gallery, "-o", tmp_path / "o.jsonl", "--outputs", "patch_map").status == 0
    record = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert np.array_equal(np.float32(record["patch_map"]), direct.patch_map[0].numpy())


def test_without_output_scores_go_to_stdout(cli: Any, gallery: Path) -> None:
    (gallery / "3.png").write_bytes(b"")
    outcome = cli("score", gallery, "--quiet")
    lines = [line.rsplit(" ", 1) for line in outcome.out.splitlines()]
    assert [name for name, _ in lines] == [f"{i}.png" for i in (0, 1, 2, 4, 5, 6)]
    assert all(len(score.partition(".")[2]) == 6 for _, score in lines)
    assert outcome.err.startswith("3.png: wanted a JPEG")
    assert len(outcome.err.splitlines()) == 1
    assert outcome.status == 0


def test_threads_reach_the_scoring_thread(
    cli: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiqa_fast.scorer import Scorer

    call, seen = Scorer.__call__, []

    def watch(self: Scorer, images: torch.Tensor) -> Any:
        seen.append(torch.get_num_threads())
        return call(self, images)

    monkeypatch.setattr(Scorer, "__call__", watch)
    before = torch.get_num_threads()
    try:
        assert cli("score", gallery, "--threads", before + 2).status == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 2]


def test_early_exits_of_a_vit_fiqa_model(cli: Any, gallery: Path, tmp_path: Path) -> None:
    config = ViTConfig(28, 16, 3, 2, 3, quality_head="token")
    torch.save(FaceViT(config).state_dict(), tmp_path / "m.pt")
    model = ("--model", tmp_path / "m.pt", "--architecture", "num_heads=2")
    for options in (["--exit", 2], ["--fusion", "depth"], ["--outputs", "exit_scores"]):
        table = tmp_path / "out.parquet"
        outcome = cli(
            "score", gallery, "-o", table, *model, "--method", "ex-fiqa", "--overwrite", *options
        )
        assert outcome.status == 0, outcome.err
        assert "ex-fiqa, exit" in outcome.err
        assert pq.read_table(table).num_rows == 7
    refused = cli("score", gallery, *model, "--method", "vit-fiqa", "--exit", 2)
    assert refused.status == 2
    assert "use ex-fiqa" in refused.err
    assert cli("score", gallery, "--method", "ex-fiqa").status == 2  # the starter has no such head


# Bad images


def test_fifty_broken_files_lose_nothing(cli: Any, gallery: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.parquet"
    assert cli("score", gallery, "-o", before).status == 0
    keys = make_broken(gallery / "broken", jpeg())
    path = tmp_path / "out.parquet"
    outcome = cli("score", gallery, "-o", path)
    assert outcome.status == 0
    assert "7 of 57 images scored" in outcome.err
    assert "50 without a score" in outcome.err
    assert "2 passed over" in outcome.err
    rows = table(path)
    assert list(rows)[:7] == [f"{i}.png" for i in range(7)]
    assert set(rows) == {f"{i}.png" for i in range(7)} | {f"broken/{key}" for key in keys}
    for key, (score, error) in rows.items():
        if key.startswith("broken/"):
            assert score is None
            assert error
            assert "\n" not in error
        else:
            assert (score, error) == table(before)[key]


def test_strict_reports_failures_by_its_status(cli: Any, gallery: Path, tmp_path: Path) -> None:
    assert cli("score", gallery, "--strict", "-o", tmp_path / "a.csv").status == 0
    (gallery / "bad.jpg").write_bytes(b"")
    outcome = cli("score", gallery, "--strict", "-o", tmp_path / "a.csv")
    assert outcome.status == 1
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 9


def test_text_tables_have_their_errors_told(cli: Any, gallery: Path, tmp_path: Path) -> None:
    (gallery / "bad.jpg").write_bytes(b"")
    outcome = cli("score", gallery, "-o", tmp_path / "a.txt")
    assert "bad.jpg: wanted a JPEG" in outcome.err
    assert (tmp_path / "a.txt").read_text().splitlines()[-1] == "bad.jpg nan"


def test_lists_with_missing_files(cli: Any, gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0.png\r\n\nmissing.png\n1.png\n")
    path = tmp_path / "out.parquet"
    assert cli("score", tmp_path / "list.txt", "--root", gallery, "-o", path).status == 0
    rows = table(path)
    assert list(rows) == ["0.png", "missing.png", "1.png"]
    assert rows["missing.png"] == (None, "no such file")


def test_other_sizes_are_resized_and_mentioned(cli: Any, tmp_path: Path) -> None:
    face(tmp_path / "in" / "a.png", 1, 96)
    face(tmp_path / "in" / "b.png", 1, 300)
    path = tmp_path / "out.parquet"
    outcome = cli("score", tmp_path / "in", "-o", path)
    assert "2 resized to 112 x 112 (1 reduced more than twofold)" in outcome.err
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    direct = scorer(load_image(tmp_path / "in" / "a.png", 112)[None]).score
    assert direct is not None
    assert table(path)["a.png"][0] == direct[0].item()


# Real faces


@pytest.fixture
def faces() -> Path:
    root = os.environ.get("FIQA_FAST_TEST_DATA")
    if not root or not (Path(root) / "faces" / "aligned112" / "lfw").is_dir():
        pytest.skip("FIQA_FAST_TEST_DATA does not name a folder with faces/aligned112/lfw")
    return Path(root) / "faces" / "aligned112" / "lfw"


def test_real_faces_with_and_without_broken_files(cli: Any, faces: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.parquet"
    assert cli("score", faces, "-o", clean).status == 0
    rows = table(clean)
    assert len(rows) == 917
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    keys = list(rows)
    assert keys == sorted(keys, key=lambda key: key.split("/"))
    for start in range(0, 917, 100):
        direct = scorer([faces / key for key in keys[start : start + 100]]).score
        assert direct is not None
        got = [rows[key][0] for key in keys[start : start + 100]]
        assert np.array_equal(np.float32(got), direct.numpy())

    mixed = tmp_path / "mixed"
    shutil.copytree(faces, mixed)
    sample = (faces / keys[0]).read_bytes()
    make_broken(tmp_path / "broken", sample)
    people = sorted(p for p in mixed.iterdir() if p.is_dir())
    for i, path in enumerate(sorted((tmp_path / "broken").iterdir())):
        shutil.move(path, people[i * 7 % len(people)] / path.name)
    outcome = cli("score", mixed, "-o", tmp_path / "mixed.parquet")
    assert outcome.status == 0
    assert "917 of 967 images scored" in outcome.err
    both = table(tmp_path / "mixed.parquet")
    assert sum(score is not None for score, _ in both.values()) == 917
    assert sum(error is not None for _, error in both.values()) == 50
    assert {key: both[key] for key in keys} == rows
