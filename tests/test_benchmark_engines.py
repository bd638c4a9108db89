# SPDX-License-Identifier: Apache-2.0
"""benchmarks/engines.py: the file it keeps, the plots it draws of it, and the quality it cites."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import engines
from engines_figures import curves_of, draw_exits
from evidence_data import calibrated_by_exit

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that the parts of a small run go into; what is beside the race has tests elsewhere."""
    monkeypatch.setattr(engines, "ALSO", ())
    monkeypatch.delenv("FIQA_FAST_TEST_DATA", raising=False)
    return tmp_path / "some-machine.json"


def run(path: Path, *options: str) -> dict[str, Any]:
    few = ["--models", "starter", "--dtypes", "float32", "--repeat", "2", "--threads", "1"]
    engines.main([*few, "--only", "fiqa_fast", "--exit-batch-size", "2", "-o", str(path), *options])
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_parts_are_kept_and_drawn(only_ours: Path) -> None:
    path = only_ours
    found = run(path, "--parts", "batches", "--batch-sizes", "1", "2")
    assert list(found) == ["batches"]
    assert [b["batch_size"] for b in found["batches"]["starter"]["batches"]] == [1, 2]
    plot = path.with_name("some-machine-starter.svg")
    assert "images per second" in plot.read_text() or plot.stat().st_size > 5000
    both = run(path, "--parts", "exits")
    assert both["batches"] == found["batches"]
    assert list(both["exits"]) == [str(exit) for exit in range(1, 9)]
    for exit, report in both["exits"].items():
        assert report["subject"]["options"]["exit"] == int(exit)
    quality = {str(e): {"pauc_ratio": 0.6, "low": 0.5, "high": 0.7} for e in range(1, 9)}
    draw_exits(both["exits"], quality, path.with_suffix(".svg"))
    assert path.with_suffix(".svg").stat().st_size > 5000


def test_curves_take_the_better_number_of_streams() -> None:
    def line(streams: int, rate: float) -> dict[str, Any]:
        spread = {"median": rate, "low": rate, "high": rate}
        key = {"engine": "openvino", "graph": "published", "dtype": "float32"}
        return {**key, "streams": streams, "images_per_second": spread}

    races = [
        (1, {"lines": [line(1, 5.0)]}),
        (2, {"lines": [line(1, 5.0), line(2, 6.0)]}),
        (4, {"lines": [line(1, 7.0), line(2, 6.0)]}),
    ]
    ((key, curve),) = curves_of(races).items()
    assert key == ("openvino", "published", "float32")
    assert [(at, rate["median"]) for at, rate in curve] == [(1, 5.0), (2, 6.0), (4, 7.0)]


def test_quality_is_that_of_the_page(needs_data: Path) -> None:
    table = PAGE.read_text().partition("## What an exit costs")[2].partition("## Damage")[0]
    rows = re.findall(r"^\| (\d) \| .*?\| ([\d.]+) \[([\d.]+), ([\d.]+)\] \|", table, re.MULTILINE)
    assert len(rows) == 8
    found = calibrated_by_exit(needs_data)
    for block, ratio, low, high in rows:
        row = found[int(block)]
        assert row.pauc_ratio == pytest.approx(float(ratio), abs=2e-3)
        assert row.pauc_ratio_interval.low == pytest.approx(float(low), abs=5e-3)
        assert row.pauc_ratio_interval.high == pytest.approx(float(high), abs=5e-3)
