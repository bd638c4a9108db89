# SPDX-License-Identifier: Apache-2.0
"""A degradation study as a table, as a file and as a plot."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fiqa_fast.evaluate.degrade import LEVELS, Curve, Estimate, Study
from fiqa_fast.gallery.atomic import AtomicFile, check_target
from fiqa_fast.gallery.errors import OutputError

__all__ = ["check_plot", "check_report", "table", "write_plot", "write_report"]

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
_REPORTS = ("json", "csv", "md")
_PLOTS = ("png", "svg", "pdf")
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
    _check(path, _REPORTS, "report")


def check_plot(path: str) -> None:
    """Raise :class:`OutputError` where no plot can be drawn, or none written to ``path``."""
    _check(path, _PLOTS, "plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("a plot needs matplotlib: pip install 'fiqa_fast[evaluate]'")


def _check(path: str, suffixes: Sequence[str], what: str) -> None:
    if _suffix(path) not in suffixes:
        wanted = ", ".join(f".{suffix}" for suffix in suffixes)
        raise OutputError(f"{path}: wanted a {what} with the suffix {wanted}")
    check_target(path)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


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
    render = {"json": _json, "csv": _csv, "md": _markdown}[_suffix(path)]
    _write(path, render(study, facts).encode())


def _write(path: str, content: bytes) -> None:
    target = AtomicFile(path)
    try:
        target.file.write(content)
        target.commit()
    except BaseException:
        target.abort()
        raise


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
    lines = ["# Score against level of degradation", "", LEGEND, "", _row(header)]
    lines += [_row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows), ""]
    lines.append(f"Numbered columns: mean score at that level. {len(study.scores)} images.")
    lines += ["", "```json", json.dumps(dict(facts), indent=2), "```"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_plot(path: str, study: Study) -> None:
    """Draw mean score against level, a curve with its 95 % band for each type (.png/.svg/.pdf).

    Raises :class:`OutputError` without matplotlib.
    """
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
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
    kind = _suffix(path)
    # Without dates and random ids, the same study is the same file.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fiqa_fast"}):
        figure.savefig(content, format=kind, dpi=150, metadata=dates)
    _write(path, content.getvalue())


def _short(estimate: Estimate) -> str:
    return "undefined" if math.isnan(estimate.value) else f"{estimate.value:+.2f}"
