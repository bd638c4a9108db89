# SPDX-License-Identifier: Apache-2.0
"""Curves as pictures: one panel per protocol and operating point, all scores in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fiqa_fast.figures import new_figure

from .compare import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

# More scores than colours repeat the colours with other dashes.
_DASHES = ("-", "--", ":", "-.")
# With more scores than these, one legend beside the panels leaves room for the curves.
_MAX_IN_PANEL = 8
# Its lines in a column, and inches of a mark and a letter.
_LEGEND_LINES, _MARK, _LETTER = 25, 0.6, 0.055


def plot_curves(comparison: Comparison) -> Figure:
    """Draw FNMR against the discarded share, 0 to a little beyond the limit."""
    panels = list(dict.fromkeys((row.protocol, row.point) for row in comparison.rows))
    methods = list(dict.fromkeys(row.method for row in comparison.rows))
    crowded = len(methods) > _MAX_IN_PANEL
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    legend_columns = -(-len(methods) // _LEGEND_LINES) if crowded else 0
    legend_width = legend_columns * (_MARK + _LETTER * max(map(len, methods)))
    legend_height = 0 if crowded else 0.17 * len(methods)  # below each panel
    figure = new_figure(4.2 * columns + 0.4 + legend_width, (3.4 + legend_height) * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False)
    limit = float(str(comparison.facts["limit"]))
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
            # Below the panel: above the curves there is no place that is always free.
            axis.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                fontsize=7,
                frameon=False,
                title="score (pAUC ratio)",
                title_fontsize=7,
            )
    if crowded:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside right upper",
            fontsize=7,
            frameon=False,
            ncols=legend_columns,
        )
    return figure
