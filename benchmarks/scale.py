# SPDX-License-Identifier: Apache-2.0
"""The figures of ``docs/scale.md``, from what was measured.

python benchmarks/scale.py                     write them anew from docs/measured/*.json
python benchmarks/scale.py --measure           measure costs on this machine first (minutes)

No number on the page is written by hand: each block between ``<!-- name -->`` and ``<!-- end -->``
is replaced. ``shards.json`` is simulate_shards.py's, ``kills.json`` tests/helpers/kills.py's,
``gallery.json`` bench_gallery.py's, ``soak.json`` and ``soak_vit_s.json`` soak.py's.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from fiqa_fast.gallery.store import SAVE_SECONDS
from fiqa_fast.tables import markdown

DOCS = Path(__file__).parents[1] / "docs"
CROPS = 10**9
SHARES = 10_000
CORES = 16  # of one machine of the plan
MACHINES = 100
_HOUR = 3600.0
_MODELS = {"starter": "built-in", "vit_s": "ViT-S/9"}
Figures = dict[str, Any]


def read() -> dict[str, Figures]:
    """Return what was measured, by the name of its file."""
    return {p.stem: json.loads(p.read_text()) for p in sorted((DOCS / "measured").glob("*.json"))}


def bytes_of(count: float) -> str:
    """A number of bytes with a unit: kB are 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def hours_of(seconds: float) -> str:
    """A time with a unit."""
    if seconds < 120:
        return f"{seconds:.2g} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _HOUR:,.0f} h"


def filled(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(" ".join(text.split()), 100)


def costs(measured: dict[str, Figures]) -> str:
    """What 10^9 crops cost, model by model."""
    found = measured["costs"]
    starts = SHARES * found["start"]["core-seconds"]
    rows = []
    for name, cost in found["images"].items():
        seconds = CROPS * cost["core-seconds"]
        wall = seconds / (MACHINES * CORES)
        rows.append(
            [
                name,
                f"{1000 * cost['core-seconds']:.2f}",
                f"{seconds / _HOUR:,.0f}",
                hours_of(wall),
                f"{bytes_of(CROPS * found['bytes of a crop'] / wall)}/s",
                f"{100 * starts / seconds:.2g} %",
            ]
        )
    header = [
        "model",
        "core-ms per crop",
        "core-hours",
        f"on {MACHINES} machines of {CORES} cores",
        "to be read",
        f"{SHARES:,} starts add",
    ]
    return "\n\n".join(
        [
            markdown(header, rows),
            filled(
                f"""Reading, decoding and scoring from a `.rec`, {cost["dtype"]} on
                {found["threads"]} cores of a processor with {found["processor"]}, torch
                {found["versions"]["torch"]}; `vit_s` has random weights. A start costs
                {found["start"]["core-seconds"]:.1f} core-seconds before the first image."""
            ),
        ]
    )


def storage(measured: dict[str, Figures]) -> str:
    """What is read and written for 10^9 crops."""
    found = measured["costs"]
    costs = found["rows"]
    lines = [
        ["crops read once, JPEG", bytes_of(found["bytes of a crop"])]
        + [bytes_of(CROPS * found["bytes of a crop"] / n) for n in (1, SHARES)]
    ]
    for label, name in (("score", "score"), ("512-d float16", "score and a 512-d embedding")):
        for what, key in (("table", "the table"), ("unfinished parts", "parts")):
            size = costs[f"bytes of {key}, {label}"]
            lines.append(
                [f"{name}: {what}", bytes_of(size)]
                + [bytes_of(CROPS * size / n) for n in (1, SHARES)]
            )
    finish = CROPS / SHARES * costs["core-seconds to finish, score"]
    over = CROPS / SHARES * costs["core-seconds to pass over a row"]
    return "\n\n".join(
        [
            markdown(["", "each", f"{CROPS:.0e}".replace("1e+0", "10^"), "a share"], lines),
            filled(
                f"""A share of {CROPS // SHARES:,} crops is put together from its parts in
                {finish:.2f} core-seconds, and a restart passes over as many finished rows in
                {over:.2f}."""
            ),
        ]
    )


def kill_costs(measured: dict[str, Figures]) -> str:
    """What kills add to the work, by how often they come."""
    found = measured["costs"]
    cost = found["images"]["starter, exit 8"]["core-seconds"]
    over = CROPS / SHARES / 2 * found["rows"]["core-seconds to pass over a row"]
    again = found["start"]["seconds"] + over
    rows = []
    for hours in (0.25, 1, 10, 100):
        kills = CROPS * cost / CORES / (hours * _HOUR)
        cells = [f"every {hours:g} h", f"{kills:,.0f}" if kills >= 10 else f"{kills:.2g}"]
        for saving in (5.0, SAVE_SECONDS, 300.0):
            lost = saving / 2 + again
            cells.append(f"{100 * lost / (hours * _HOUR):.2g} %")
        rows.append(cells)
    header = ["a worker is killed", "kills in all"]
    header += [f"`--save-every {s:g}`" for s in (5.0, SAVE_SECONDS, 300.0)]
    return markdown(header, rows)


def simulated(measured: dict[str, Figures]) -> str:
    """The simulation's figures as a sentence."""
    found = measured["shards"]
    good = not any(
        found[name]
        for name in ("rows missing", "rows twice", "rows of other values", "files left over")
    )
    return filled(
        f"""{found["shards"]:,} shards, {found["workers"]} worker processes at a time,
        {found["deaths"]:,} of which died ({found["killed by the scheduler"]:,} killed at random
        times, the others at a random change of the file system); {found["starts of shards"]:,}
        starts, {found["given to two at once"]:,} of them of a shard that another worker had,
        {found["refused"]:,} refused for that; {found["rows scored"]:,} rows scored,
        {found["rows scored again"]:,} of them again. Read as one dataset: {found["rows"]:,} rows
        of {found["rows wanted"]:,} wanted, {found["rows missing"]} missing, {found["rows twice"]}
        twice, {found["rows of other values"]} with other values, {found["files left over"]} files
        left over: {"exactly once" if good else "NOT exactly once"}."""
    )


def killed(measured: dict[str, Figures]) -> str:
    """The kill test's figures as a sentence."""
    found = measured["kills"]
    stages = ", ".join(
        f"{name} {count}" for name, count in sorted(found["stages"].items(), key=lambda x: -x[1])
    )
    return filled(
        f"""{found["runs"]} runs over {found["images"]:,} crops, killed {found["kills"]} times
        ({stages}) and resumed: {found["equal"]} tables equal to the undisturbed one, byte by
        byte."""
    )


def soaked(measured: dict[str, Figures]) -> str:
    """The soaks' figures as a table."""
    rows = []
    soaks = [measured["soak"], measured["soak_vit_s"]]
    for found in soaks:
        for name, source in found["sources"].items():
            memory = (source[key] for key in ("MiB when warm", "MiB at most"))
            rows.append(
                [
                    f"{_MODELS[found['model']]}, exit {found['exit']}",
                    f"{found['images']:,} of .{name}",
                    *(f"{mib:,.1f}" for mib in memory),
                    f"{source['MiB per 100,000 images']:+.1f}",
                    f"{source['images/s']:,.0f}",
                    f"{source['of model']:.2f}",
                    f"{found['bound']:.2f}",
                    source["busy"],
                ]
            )
    where = (
        f"{_MODELS[found['model']]}: {found['threads']} threads, {found['processor']}"
        for found in soaks
    )
    header = ["model", "crops", "MiB when warm", "MiB at most", "MiB per 100,000", "images/s"]
    return "\n\n".join(
        [
            markdown([*header, "of model", "bound", "busy"], rows),
            filled(
                f"""{"; ".join(where)}. "Of model" is over the speed of the model alone before and
                after."""
            ),
        ]
    )


def shared(measured: dict[str, Figures]) -> str:
    """What runs keep of the model's own speed, as a table."""
    rows = []
    for found in measured["gallery"]:
        values = [f"{found[source]['of_model']:.2f}" for source in ("rec", "tar")]
        rows.append(
            [
                _MODELS[found["model"]],
                str(found["threads"]),
                f"{found['model_images_per_second']:,.0f}",
                f"{100 * found['decode_over_model']:.1f} %",
                *values,
                f"{found['bound']:.2f}",
                f"{100 * found['rec']['scoring_share']:.1f} %",
            ]
        )
    header = ["model", "threads", "model alone, images/s", "decode / model"]
    return markdown([*header, ".rec", ".tar", "bound", "of the run, in scoring"], rows)


BLOCKS = {
    "costs": costs,
    "storage": storage,
    "kill costs": kill_costs,
    "simulation": simulated,
    "kills": killed,
    "share": shared,
    "soak": soaked,
}


def page(text: str, measured: dict[str, Figures]) -> str:
    """Return the page with its figures; raises ``ValueError`` for a block that nobody makes."""

    def made(match: re.Match[str]) -> str:
        if match[1] not in BLOCKS:
            raise ValueError(f"wanted one of {', '.join(BLOCKS)}, got {match[1]}")
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]](measured)}\n<!-- end -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def main() -> None:
    """Write the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure costs anew")
    parser.add_argument("--images", type=int, default=4000, help="for each measurement")
    options = parser.parse_args()
    if options.measure:
        from scale_costs import measure

        text = json.dumps(measure(options.images), indent=1)
        (DOCS / "measured" / "costs.json").write_text(text + "\n")
    path = DOCS / "scale.md"
    path.write_text(page(path.read_text(), read()))


if __name__ == "__main__":
    main()
