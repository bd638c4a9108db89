# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md: its numbers against scores of other code, its words against rules."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from real_faces import cross_quality

from evidence import CLEARLY, verdict
from fiqa_fast import evaluate
from fiqa_fast.evaluate import Interval, Row

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"


def row(ratio: float, low: float, high: float) -> Row:
    return Row("", "", "", 0, 0, 0, 0, ratio, pauc_ratio_interval=Interval(low, high))


def test_verdicts() -> None:
    assert verdict(row(0.5, 0.4, CLEARLY - 0.01)) == "ranks quality"
    assert verdict(row(0.9, 0.8, 0.99)) == "ranks quality weakly"
    assert verdict(row(0.97, 0.9, 1.02)) == "does not rank quality"
    assert verdict(row(1.1, 1.01, 1.2)) == "ranks quality the wrong way round"


def test_the_page_has_the_numbers_of_float64_scores(needs_data: Path) -> None:
    trials, paths, _ = cross_quality(needs_data)
    with open(needs_data / "starter" / "expected_faces.csv", newline="") as file:
        by_path = {line["path"]: line for line in csv.DictReader(file)}
    expected = [by_path[path] for path in paths]
    kinds = ("published", "centered_variance", "calibrated")
    scores = {
        f"{kind}_{block}": [float(line[f"{kind}_{block}"]) for line in expected]
        for kind in kinds
        for block in range(1, 9)
    }
    found = evaluate.compare(trials, scores, fmr=[1e-3], draws=0)
    ratios = {row.method: row.pauc_ratio for row in found.rows}
    # | block | published | reversed | row variance | centred variance | calibrated |
    table = re.findall(r"^\| (\d) \|(.*)\|$", PAGE.read_text().split("## Every block")[1], re.M)[:8]
    assert [int(block) for block, _ in table] == list(range(1, 9))
    for block, cells in table:
        values = [float(cell.split()[0]) for cell in cells.split("|")]
        for kind, value in zip(kinds, (values[0], values[3], values[4]), strict=True):
            assert value == pytest.approx(ratios[f"{kind}_{block}"], abs=2e-3)


def test_curves_alone_are_on_the_page() -> None:
    text = PAGE.read_text()
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == ["evidence_curves.svg", "evidence_speed.svg"]
    for name in ("evidence_curves.svg", "evidence_speed.svg"):
        assert "<image" not in (PAGE.parent / name).read_text()


def test_no_name_is_on_the_page(needs_data: Path) -> None:
    text = PAGE.read_text()
    names = [folder.name for folder in (needs_data / "faces" / "aligned112" / "lfw").iterdir()]
    assert names
    assert not [name for name in names if name in text]
