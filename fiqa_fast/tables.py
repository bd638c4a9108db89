# SPDX-License-Identifier: Apache-2.0
"""Rows of text as a table: aligned for a terminal, or Markdown. The first column is a name."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "markdown"]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def line_of(cells: Sequence[str]) -> str:
        first, *rest = (c.rjust(w) for c, w in zip(cells, widths, strict=True))
        return "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()

    return "\n".join(map(line_of, lines))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right; without a line end behind it."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [
        " | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (header, rule, *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)
