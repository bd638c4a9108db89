# SPDX-License-Identifier: Apache-2.0
"""From values to colours: matplotlib's colormaps as tables, and the limits of a scale."""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np
import numpy.typing as npt

from fiqa_fast.figures import need_matplotlib
from fiqa_fast.gallery.errors import InputError

__all__ = ["Colours", "Limits", "colormap", "find_limits"]

Floats = npt.NDArray[np.float32]
Limits = tuple[float, float]

# Values from which percentiles are taken; beyond, of every k-th image.
_SAMPLE = 2**22


def colormap(name: str) -> npt.NDArray[np.uint8]:
    """A matplotlib colormap as its table of RGB colours, uint8 [n, 3], from low to high.

    Raises:
        InputError: there is none of that name; the text suggests some that are close.
        OutputError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib import colormaps as known

    if name not in known:
        lower = {candidate.lower(): candidate for candidate in reversed(list(known))}
        close = difflib.get_close_matches(name.lower(), lower, 4)
        names = [lower[candidate] for candidate in close] or ["viridis", "magma", "cividis"]
        raise InputError(
            f"--cmap: wanted a matplotlib colormap such as {', '.join(names)}, got {name!r}"
        )
    cmap = known[name]
    table: npt.NDArray[np.uint8] = cmap(np.arange(cmap.N), bytes=True)[:, :3]
    return table


@dataclasses.dataclass(frozen=True)
class Colours:
    """A colour for every value: ``table`` uint8 [n, 3] spread evenly from ``low`` to ``high``."""

    table: npt.NDArray[np.uint8]
    low: float
    high: float

    def index(self, values: Floats) -> npt.NDArray[np.intp]:
        """Rows of the table for ``values`` of any shape, as matplotlib's ``Normalize`` and
        ``Colormap`` would choose them; values beyond the limits get the first or the last."""
        count = len(self.table)
        scaled = (values - np.float32(self.low)) / np.float32(self.high - self.low) * count
        rows: npt.NDArray[np.intp] = np.clip(scaled, 0, count - 1).astype(np.intp)
        return rows


def find_limits(maps: Floats, percentiles: Limits, low: float | None, high: float | None) -> Limits:
    """The limits of one scale for all ``maps`` [n, ...]: ``percentiles`` of their values, unless
    given by ``low`` and ``high``.

    0 and 100 are the smallest and the largest value; others are of at most some four million
    values, those of every k-th image.

    Raises:
        InputError: a given limit leaves no room for the other.
    """
    found = (_percentile(maps, percentiles[0]), _percentile(maps, percentiles[1]))
    limits = (found[0] if low is None else low, found[1] if high is None else high)
    if limits[0] < limits[1]:
        return limits
    if low is None and high is None:  # all alike: the middle of the scale
        return limits[0] - 0.5, limits[0] + 0.5
    raise InputError(
        f"--vmin and --vmax: the scale would run from {limits[0]:g} to {limits[1]:g}, while the "
        f"values lie between {found[0]:g} and {found[1]:g}"
    )


def _percentile(maps: Floats, percentile: float) -> float:
    if percentile in (0, 100):
        return float(maps.max() if percentile else maps.min())
    return float(np.percentile(maps[:: -(-maps.size // _SAMPLE)], percentile))
