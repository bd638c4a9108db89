# SPDX-License-Identifier: Apache-2.0
"""A degradation study as a table, as a file and as a plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from fiqa_fast.evaluate.studies.degrade import LEVELS, Curve, Estimate, Study
from fiqa_fast.figures import new_figure, save_figure
from fiqa_fast.gallery.atomic import check_suffix, write_atomically
from fiqa_fast.tables import markdown

__all__ = ["LEGEND", "check_report", "table", "write_plot", "write_report"]

NAMES = {
    "gblur": "Gaussian blur",
    "mblur": "motion blur",
    "down": "low resolution",
    "jpeg": "JPEG compression",
    "noise": "noise",
    "dark": "darkness",
    "occl": "occlusion",
}
LEGEND = (
    "Spearman's correlation of level (0 clean, 5 severe) and score, [95 % interval over images]; "
    "-1 is best. "
    "pooled: all images and levels together; within image: the mean of each image's own; "
    "monotone: images whose score falls at every step."
)
# Okabe and Ito's colours, which colour-blind readers tell apart; the markers help on paper.
_STYLES = (
    ("#0072b2", "o"),
    ("#56b4e9", "s"),
    ("#009e73", "^"),
    ("#e69f00", "D"),
    ("#cc79a7", "v"),
    ("#000000", "P"),
    ("#d55e00", "X"),
)


def check_report(path: str) -> None:
    """Raise :class:`OutputError` where no report can be written to ``path``."""
    check_suffix(path, tuple(_RENDERERS))


def table(study: Study) -> list[list[str]]:
    """Return the study as rows of text, the column names first."""
    rows = [["type", "pooled", "within image", "monotone", "clean", *map(str, LEVELS[1:])]]
    for curve in study.curves:
        correlations = (_correlation(curve.pooled), _correlation(curve.within))
        means = (_number(mean.value) for mean in curve.mean)
        rows.append([curve.kind, *correlations, f"{100 * curve.monotone:.0f} %", *means])
    return rows


def _correlation(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "undefined"
    if math.isnan(estimate.low):
        return f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _number(value: float) -> str:
    return f"{value:.4g}"


def write_report(path: str, study: Study, facts: Mapping[str, Any]) -> None:
    """Write the study as .json, .csv (a row per type and level) or .md, whole or not at all.

    ``facts`` are what else a reader has to know: the scorer, the inputs, the version. They stand
    in .json and .md. What is undefined is null in .json and empty in .csv.
    """
    suffix = check_suffix(path, tuple(_RENDERERS))
    write_atomically(path, _RENDERERS[suffix](study, facts).encode())


def _json(study: Study, facts: Mapping[str, Any]) -> str:
    document = {
        **facts,
        "images": len(study.scores),
        "seed": study.seed,
        "types": {curve.kind: _entry(curve) for curve in study.curves},
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _entry(curve: Curve) -> dict[str, Any]:
    return {
        "spearman_pooled": _interval(curve.pooled),
        "spearman_within_image": _interval(curve.within),
        "images_of_equal_scores": curve.undefined,
        "monotone_share": curve.monotone,
        "levels": [
            {"level": level, "mean_score": _interval(mean), "quartiles": list(quartiles)}
            for level, mean, quartiles in zip(LEVELS, curve.mean, curve.quartiles, strict=True)
        ],
    }


def _interval(estimate: Estimate) -> dict[str, float | None]:
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _csv(study: Study, facts: Mapping[str, Any]) -> str:
    text = io.StringIO()
    # A row per type and level; what belongs to the type alone stands in each of its rows.
    names = ["type", "level", "mean_score", "mean_low", "mean_high", "quartile_1", "quartile_3"]
    for name in ("spearman_pooled", "spearman_within_image"):
        names += [name, f"{name}_low", f"{name}_high"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "monotone_share", "images"])
    for curve in study.curves:
        of_type = [*_cells(curve.pooled), *_cells(curve.within), repr(curve.monotone)]
        for level, mean, quartiles in zip(LEVELS, curve.mean, curve.quartiles, strict=True):
            of_level = [curve.kind, str(level), *_cells(mean), *map(repr, quartiles)]
            writer.writerow([*of_level, *of_type, str(len(study.scores))])
    return text.getvalue()


def _cells(estimate: Estimate) -> list[str]:
    numbers = (estimate.value, estimate.low, estimate.high)
    return ["" if math.isnan(number) else repr(number) for number in numbers]


def _markdown(study: Study, facts: Mapping[str, Any]) -> str:
    header, *rows = table(study)
    lines = ["# Score against level of degradation", "", LEGEND, ""]
    lines += [markdown(header, rows), ""]
    lines.append(f"Numbered columns: mean score at that level. {len(study.scores)} images.")
    lines += ["", "```json", json.dumps(dict(facts), indent=2), "```"]
    return "\n".join(lines) + "\n"


_RENDERERS = {".json": _json, ".csv": _csv, ".md": _markdown}


def write_plot(path: str, study: Study) -> None:
    """Draw mean score against level, a curve with its 95 % band for each type (.png/.svg/.pdf).

    Raises :class:`OutputError` without matplotlib.
    """
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    for curve, (colour, marker) in zip(study.curves, _STYLES, strict=False):
        means = [mean.value for mean in curve.mean]
        label = f"{NAMES[curve.kind]} ({_short(curve.pooled)})"
        axes.plot(LEVELS, means, color=colour, marker=marker, markersize=5, label=label)
        if not math.isnan(curve.mean[0].low):
            low, high = ([getattr(mean, end) for mean in curve.mean] for end in ("low", "high"))
            axes.fill_between(LEVELS, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("level of degradation (0 clean, 5 severe)")
    axes.set_ylabel("mean score")
    n = len(study.scores)
    axes.set_title(f"{n} image{'s' if n > 1 else ''}; bands: 95 % interval of the mean", size=10)
    axes.set_xticks(LEVELS)
    axes.grid(alpha=0.3)
    figure.legend(title="type (pooled Spearman)", loc="outside right upper", frameon=False)
    save_figure(figure, path)


def _short(estimate: Estimate) -> str:
    return "undefined" if math.isnan(estimate.value) else f"{estimate.value:+.2f}"
