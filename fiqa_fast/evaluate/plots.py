# SPDX-License-Identifier: Apache-2.0
"""Curves as pictures: one panel per protocol and operating point, all scores in each."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from fiqa_fast.gallery.atomic import check_target
from fiqa_fast.gallery.errors import InputError, OutputError

from .compare import Comparison
from .report import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PLOT_SUFFIXES", "check_plot", "new_figure", "plot_curves", "save_figure"]

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# More scores than colours repeat the colours with other dashes.
_DASHES = ("-", "--", ":", "-.")
# With more scores than these, one legend beside the panels leaves room for the curves.
_MAX_IN_PANEL = 8


def plot_curves(comparison: Comparison) -> Figure:
    """Draw FNMR against the discarded share, 0 to a little beyond the limit."""
    panels = list(dict.fromkeys((row.protocol, row.point) for row in comparison.rows))
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = new_figure(4.2 * columns + 0.4, 3.4 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False)
    limit = float(str(comparison.facts["limit"]))
    methods = list(dict.fromkeys(row.method for row in comparison.rows))
    crowded = len(methods) > _MAX_IN_PANEL
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for (protocol, point), axis in zip(panels, axes.flat, strict=False):
        for row, curve in zip(comparison.rows, comparison.curves, strict=True):
            if (row.protocol, row.point) != (protocol, point):
                continue
            number = methods.index(row.method)
            style = {"color": f"C{number % 10}", "linestyle": _DASHES[number // 10 % len(_DASHES)]}
            label = row.method if crowded else f"{row.method} ({row.pauc_ratio:.3f})"
            if curve.step:
                axis.step(curve.discard, curve.fnmr, where="post", label=label, **style)
            else:
                axis.plot(curve.discard, curve.fnmr, label=label, **style)
        axis.set_xlim(0, min(1.0, 1.1 * limit))
        axis.set_ylim(bottom=0)
        axis.axvline(limit, color="0.8", linewidth=0.8)
        axis.set_title(f"{protocol}, {point}", fontsize=10)
        axis.set_xlabel("discarded share")
        axis.set_ylabel("FNMR")
        axis.spines[["top", "right"]].set_visible(False)
        if not crowded:
            axis.legend(fontsize=7, frameon=False, title="score (pAUC ratio)", title_fontsize=7)
    if crowded:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'fiqa_fast[evaluate]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def check_plot(path: str) -> None:
    """Raise :class:`OutputError` where no plot can be written under that name."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in PLOT_SUFFIXES:
        raise OutputError(
            f"{path}: wanted a name ending in {', '.join(PLOT_SUFFIXES)}, got {suffix or 'none'!r}"
        )
    check_target(path)


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure, its kind chosen by suffix, whole or not at all, the same bytes every time."""
    check_plot(path)
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    # What differs between two runs, the date and random identifiers, stays out.
    metadata: dict[str, Any] = {} if suffix == "png" else {"Date": None}
    if suffix == "pdf":
        metadata = {"CreationDate": None}
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fiqa_fast"}):
        figure.savefig(content, format=suffix, dpi=150, metadata=metadata)
    write_whole(path, content.getvalue())
