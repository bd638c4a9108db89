# SPDX-License-Identifier: Apache-2.0
"""EX-FIQA's fusions over exits (arXiv 2604.22842): uniform, or weights proportional to depth."""

from __future__ import annotations

FUSIONS = ("uniform", "depth")


def exit_weights(exit: int, fusion: str | None) -> dict[int, float]:
    """Weight of each exit 1..``exit`` in the score; without a fusion, the last one's alone."""
    if fusion is None:
        return {exit: 1.0}
    if fusion == "uniform":
        return dict.fromkeys(range(1, exit + 1), 1 / exit)
    if fusion == "depth":
        total = exit * (exit + 1) / 2
        return {block: block / total for block in range(1, exit + 1)}
    raise ValueError(f"fusion must be one of {', '.join(FUSIONS)} or none, got {fusion!r}")
