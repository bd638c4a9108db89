# SPDX-License-Identifier: Apache-2.0
"""The figures of ``evidence.py``: curves and points, no images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from evidence_data import CONTROLS, FMR, LIMIT, OURS, THEIRS, VARIANCE, Array
from fiqa_fast import evaluate, figures
from fiqa_fast.evaluate.compare import Row
from fiqa_fast.evaluate.plots import plot_curves


def draw_speed(found: dict[str, Row], rates: dict[int, float], path: Path) -> None:
    figure = figures.new_figure(6.4, 4.2)
    axis = figure.subplots()
    for label, name, marker in ((OURS, "calibrated mean", "o"), (THEIRS, "published mean", "s")):
        rows = [found[f"{label}, block {exit}"] for exit in rates]
        y = np.array([row.pauc_ratio for row in rows])
        ends = np.array([(r.pauc_ratio_interval.low, r.pauc_ratio_interval.high) for r in rows])
        axis.errorbar(
            list(rates.values()), y, yerr=np.abs(ends.T - y), marker=marker, capsize=2, label=name
        )
        for (exit, rate), value in zip(rates.items(), y, strict=True):
            axis.annotate(str(exit), (rate, value), (4, 4), textcoords="offset points", fontsize=8)
    axis.axhline(found[CONTROLS[0]].pauc_ratio, color="0.6", linestyle="--", label=CONTROLS[0])
    axis.axhline(1, color="0.6", linestyle=":", label="random, expected")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("images per second, score only (numbers: exit)")
    axis.set_ylabel("pAUC ratio, lower is better")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figures.save_figure(figure, str(path))


def draw_curves(trials: evaluate.Trials, scores: dict[str, Array], path: Path, depth: int) -> None:
    wanted = {
        f"published mean, block {depth}": f"{THEIRS}, block {depth}",
        f"centred variance, block {depth}": f"{VARIANCE}, block {depth}",
        "calibrated mean, block 2": f"{OURS}, block 2",
        "calibrated mean, block 4": f"{OURS}, block 4",
        f"calibrated mean, block {depth}": f"{OURS}, block {depth}",
        **{control: control for control in CONTROLS},
    }
    picked = {label: scores[name] for label, name in wanted.items()}
    found = evaluate.compare(trials, picked, fmr=[1e-2, FMR, 1e-4], limit=LIMIT, draws=0)
    figures.save_figure(plot_curves(found), str(path))
