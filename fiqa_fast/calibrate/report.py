# SPDX-License-Identifier: Apache-2.0
"""A gauge's notes as a table, and which exit they recommend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def cheapest_exit(notes: Mapping[str, Any], within: float) -> int:
    """The first block whose rank correlation comes within ``within`` of the best block's.

    Rank correlation, not R2, because quality is used to order images.
    """
    values = [_number(block["spearman"]) for block in notes["blocks"]]
    best = max(values)
    return next(n for n, value in enumerate(values, 1) if value >= best - within)


def table(notes: Mapping[str, Any], within: float) -> Iterator[str]:
    """Lines for a terminal."""
    blocks = notes["blocks"]
    cheapest = cheapest_exit(notes, within)
    yield (
        f"{'exit':>4}  {'blocks run':>10}  {'R2':>6}  {'rank corr.':>10}  {'published':>9}  "
        f"{'strength':>8}"
    )
    for block in blocks:
        mark = "  <- cheapest" if block["block"] == cheapest else ""
        yield (
            f"{block['block']:>4}  {block['blocks_run']:>10}  {block['r2']:>6.3f}  "
            f"{_number(block['spearman']):>10.3f}  {_number(block['published_spearman']):>9.3f}  "
            f"{block['strength']:>8.1e}{mark}"
        )
    best = max(blocks, key=lambda block: _number(block["spearman"]))["block"]
    yield ""
    yield (
        f"R2 over {notes['rows_held_back']} held-back rows, rank correlations over "
        f"{notes['rows_ranked']} of them"
    )
    yield (
        f"best rank correlation: exit {best}; cheapest within {within:g} of it: exit {cheapest} "
        f"({cheapest - 1} of {len(blocks)} blocks run)"
    )


def _number(value: float | None) -> float:
    """A rank correlation; none, of a constant, ranks nothing."""
    return 0.0 if value is None else value
