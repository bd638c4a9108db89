# SPDX-License-Identifier: Apache-2.0
"""The figures of ``engines.py``, from its JSON alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from fiqa_fast import figures

# One colour per engine, one mark per graph, one dash per arithmetic.
COLOURS = {
    "fiqa_fast": "#d62728",
    "openvino": "#1f77b4",
    "onnxruntime": "#2ca02c",
    "torch.compile": "#ff7f0e",
    "eager": "#7f7f7f",
}
MARKS = {"ours": "o", "published": "s", "factorised": "^"}
DASHES = {"float32": "-", "high": (0, (5, 1)), "bfloat16": "--", "float16": "-.", "int8": ":"}

Key = tuple[str, str, str]  # engine, graph, arithmetic
Curve = list[tuple[int, dict[str, float]]]  # batch size or exit, images/s with quartiles


def curves_of(races: Iterable[tuple[int, dict[str, Any]]]) -> dict[Key, Curve]:
    """The better number of streams of each engine, over what the races are numbered by."""
    curves: dict[Key, Curve] = {}
    for at, race in races:
        best: dict[Key, dict[str, float]] = {}
        for line in race["lines"]:
            key = (line["engine"], line["graph"], line["dtype"])
            rate = line["images_per_second"]
            if key not in best or best[key]["median"] < rate["median"]:
                best[key] = rate
        for key, rate in best.items():
            curves.setdefault(key, []).append((at, rate))
    return curves


def draw_batches(report: dict[str, Any], path: Path) -> None:
    """Images per second over the batch size, with quartiles, and the GEMM bound."""
    figure = figures.new_figure(8.2, 4.6)
    axis = figure.subplots()
    races = [(race["batch_size"], race) for race in report["batches"]]
    rates_of(axis, curves_of(races))
    for dtype in dict.fromkeys(bound["dtype"] for _, race in races for bound in race["bounds"]):
        bounds = [
            (
                size,
                max(
                    b["images_per_second"]["median"] for b in race["bounds"] if b["dtype"] == dtype
                ),
            )
            for size, race in races
        ]
        axis.plot(
            *zip(*bounds, strict=True),
            color="0.75",
            linestyle=DASHES.get(dtype, "-"),
            linewidth=3,
            zorder=0,
            label=f"GEMM bound, {dtype}",
        )
    sizes = [size for size, _ in races]
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sizes))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("batch size")
    axis.set_title(title(report), fontsize=10)
    legend(axis)
    figures.save_figure(figure, str(path))


def draw_exits(reports: dict[str, Any], quality: dict[str, Any], path: Path) -> None:
    """Images per second of every engine over the exits, and what the score there is worth."""
    figure = figures.new_figure(8.2, 6.4)
    rates, worth = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    exits = sorted(map(int, reports))
    rates_of(rates, curves_of((exit, reports[str(exit)]["batches"][0]) for exit in exits))
    legend(rates)
    last = reports[str(exits[-1])]
    rates.set_title(f"{title(last)}, batch size {last['batches'][0]['batch_size']}", fontsize=10)
    values = [quality[str(exit)] for exit in exits]
    ratios = [value["pauc_ratio"] for value in values]
    ends = [
        [value["pauc_ratio"] - value["low"] for value in values],
        [value["high"] - value["pauc_ratio"] for value in values],
    ]
    worth.errorbar(exits, ratios, yerr=ends, color=COLOURS["fiqa_fast"], marker="o", capsize=2)
    worth.axhline(1, color="0.6", linestyle=":")
    worth.text(exits[-1], 1, "random", ha="right", va="bottom", fontsize=8, color="0.4")
    worth.set_ylabel("pAUC ratio of the\ncalibrated score")
    worth.set_xlabel("exit: the block whose logits are the score")
    worth.set_ylim(0.4, 1.1)
    worth.xaxis.set_major_locator(FixedLocator(exits))
    worth.spines[["top", "right"]].set_visible(False)
    figures.save_figure(figure, str(path))


def rates_of(axis: Axes, curves: dict[Key, Curve]) -> None:
    for (engine, graph, dtype), curve in curves.items():
        at = [number for number, _ in curve]
        low, median, high = (
            [rate[name] for _, rate in curve] for name in ("low", "median", "high")
        )
        ours = engine == "fiqa_fast"
        name = engine if ours else f"{engine} {graph}"
        axis.plot(
            at,
            median,
            color=COLOURS.get(engine, "k"),
            marker=MARKS[graph],
            markersize=4,
            linestyle=DASHES.get(dtype, "-"),
            linewidth=2 if ours else 1.2,
            zorder=3 if ours else 2,
            label=f"{name}, {dtype}",
        )
        axis.fill_between(at, low, high, color=COLOURS.get(engine, "k"), alpha=0.12, linewidth=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("images per second")
    axis.grid(axis="y", color="0.92", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def legend(axis: Axes) -> None:
    """Beside the panel, in the order of the last point."""
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda i: -handles[i].get_ydata()[-1])
    axis.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=8,
        frameon=False,
    )


def title(report: dict[str, Any]) -> str:
    subject, machine = report["subject"], report["machine"]
    weights = " (random weights)" if subject["random_weights"] else ""
    return (
        f"{subject['name']}{weights}, {machine['cpu']}, {machine['isa']}, "
        f"{subject['threads']} threads"
    )
