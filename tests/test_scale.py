# SPDX-License-Identifier: Apache-2.0
"""docs/scale.md: shards whose workers die end exactly once; the page has the measured figures."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import scale
from simulate_shards import simulate

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_shards_of_dying_workers_end_exactly_once(tmp_path: Path) -> None:
    found = simulate(str(tmp_path), shards=60, workers=4, seed=1)
    assert found["deaths"] > 10
    assert found["rows"] == found["rows wanted"]
    assert found["parts"] == 60
    assert found["rows scored again"] > 0
    for name in ("rows missing", "rows twice", "rows of other values", "files left over"):
        assert found[name] == 0, found


def test_the_page_has_the_measured_figures() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"<!-- (?!end)([a-z ]+) -->", text)) == set(scale.BLOCKS)
    assert scale.page(text, scale.read()) == text
    assert "NOT exactly once" not in text


def test_figures_follow_from_what_was_measured() -> None:
    costs = {
        "images": {"starter, exit 8": {"core-seconds": 0.0036, "dtype": "float32"}},
        "start": {"core-seconds": 3.6, "seconds": 4.0},
        "bytes of a crop": 5000.0,
        "rows": {"core-seconds to pass over a row": 1e-6},
        "threads": 2,
        "processor": "AVX2",
        "versions": {"torch": "2.14"},
    }
    # 10^9 x 3.6 ms = 1,000 core-hours, 37.5 min on 1,600 cores, which read 5 TB in that time;
    # 10,000 starts of 3.6 s are 10 core-hours.
    line = "| starter, exit 8 | 3.60 | 1,000 | 38 min | 2.22 GB/s | 1 % |"
    assert line in scale.costs({"costs": costs}).splitlines()
    # 225,000 s on 16 cores: 62.5 kills; 15 s, 4 s and 50,000 rows are lost each time.
    line = next(x for x in scale.kill_costs({"costs": costs}).splitlines() if "every 1 h" in x)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["every 1 h", "62", "0.18 %", "0.53 %", "4.3 %"]
