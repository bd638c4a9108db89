# SPDX-License-Identifier: Apache-2.0
"""Which images are drawn, in which order."""

from __future__ import annotations

import dataclasses

from fiqa_fast.heatmap.maps import MapTable

__all__ = ["Choice", "choose"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Images by their numbers in the gallery; ``ranks`` count from 1, the best, where sorted."""

    numbers: list[int]
    heading: str = ""
    ranks: list[int] | None = None


def choose(table: MapTable, best: int | None, worst: int | None) -> list[Choice]:
    """All images in the gallery's order; or the best ones, best first, and the worst, worst first.

    Images of equal score keep the gallery's order in the ranking.
    """
    if best is None and worst is None:
        return [Choice(table.good.tolist())]
    ranked = table.best_first().tolist()
    count = len(ranked)
    choices = []
    if best is not None:
        n = min(best, count)
        choices.append(Choice(ranked[:n], f"best {n} of {count}", list(range(1, n + 1))))
    if worst is not None:
        n = min(worst, count)
        ranks = list(range(count, count - n, -1))
        choices.append(Choice([ranked[r - 1] for r in ranks], f"worst {n} of {count}", ranks))
    return choices
