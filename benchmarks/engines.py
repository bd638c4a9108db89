# SPDX-License-Identifier: Apache-2.0
"""All engines over batch sizes and exits: benchmarks/results/<processor>.json, and its plots.

FIQA_FAST_TEST_DATA=... python benchmarks/engines.py [--models cvlface_vit_small starter]

In three parts, of which `--parts` chooses; the file keeps what it has of the others:

batches  every engine at every batch size, on the crops of examples/ as JPEGs, with what stands
         beside the race: decoding, memory, start-up
exits    every engine at every exit of the built-in model, at one batch size
quality  the pAUC ratio of its calibrated score at every exit, as docs/evidence.md has it; needs
         the test data
`--parts none` draws the plots anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench_gallery import jpegs
from engines_figures import draw_batches, draw_exits
from evidence_data import calibrated_by_exit
from fiqa_fast import _load
from fiqa_fast.bench.report import text
from fiqa_fast.bench.run import ALSO, Plan, measure
from fiqa_fast.bench.subject import Subject
from fiqa_fast.cores import cores, cpu_name
from fiqa_fast.gallery.atomic import write_atomically

RESULTS = Path(__file__).parent / "results"
PARTS = ("batches", "exits", "quality")


def machine_name() -> str:
    """This machine's, as a file name: its processor and the level that our kernels run at."""
    plain = re.sub(r"\(R\)|\(TM\)|CPU|@.*", "", f"{cpu_name()}")
    return re.sub(r"[^a-z0-9]+", "-", f"{plain} {_load.isa()}".lower()).strip("-")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def of_batches(name: str, plan: Plan, dtypes: Sequence[str], threads: int) -> dict[str, Any]:
    subject = Subject.of(name, device="cpu", threads=threads)
    found = measure(subject, subject.scorers(dtypes), plan, jpegs(), tell)
    print(text(found), flush=True)
    return found.as_json()


def of_exits(plan: Plan, dtypes: Sequence[str], threads: int) -> dict[str, Any]:
    whole = Subject.of("starter", device="cpu", threads=threads)
    reports = {}
    for exit in range(1, whole.model.config.depth + 1):
        subject = whole.at_exit(exit)
        found = measure(subject, subject.scorers(dtypes), plan, jpegs(), tell)
        print(text(found), flush=True)
        reports[str(exit)] = found.as_json()
    return reports


def of_quality(data: Path) -> dict[str, Any]:
    return {
        str(block): {
            "pauc_ratio": row.pauc_ratio,
            "low": row.pauc_ratio_interval.low,
            "high": row.pauc_ratio_interval.high,
        }
        for block, row in calibrated_by_exit(data).items()
    }


def draw(results: dict[str, Any], stem: Path) -> None:
    for model, report in results.get("batches", {}).items():
        draw_batches(report, stem.with_name(f"{stem.name}-{model}.svg"))
    if "exits" in results and "quality" in results:
        draw_exits(results["exits"], results["quality"], stem.with_name(f"{stem.name}-exits.svg"))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--models", nargs="+", default=["cvlface_vit_small", "starter"])
    add("--dtypes", nargs="+", default=["float32", "int8", "bfloat16"])
    add("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    add("--exit-batch-size", type=int, default=32)
    add("--repeat", type=int, default=9)
    add("--seconds", type=float, default=600.0, help="of each race")
    add("--threads", type=int, default=cores())
    add("--only", nargs="*", default=(), help="engines whose name holds one of these")
    add("--also", nargs="*", choices=ALSO, default=ALSO, help="beside the races over batches")
    add("--parts", nargs="+", choices=[*PARTS, "none"], default=list(PARTS))
    add("-o", "--output", type=Path, help="default: benchmarks/results/<processor>.json")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    path = options.output or RESULTS / f"{machine_name()}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    torch.set_num_threads(options.threads)
    common = {
        "repeat": options.repeat,
        "seconds": options.seconds,
        "peers": True,
        "only": options.only,
        "inputs": ("examples/crops as JPEGs",),
    }

    def keep(part: str, measured: Callable[[], dict[str, Any]]) -> None:
        if part in options.parts:
            results[part] = {**results.get(part, {}), **measured()}
            write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())

    path.parent.mkdir(parents=True, exist_ok=True)
    plan = Plan(batch_sizes=options.batch_sizes, also=options.also, **common)
    for model in options.models:
        keep(
            "batches",
            lambda model=model: {model: of_batches(model, plan, options.dtypes, options.threads)},
        )
    one_size = Plan(batch_sizes=[options.exit_batch_size], **common)
    keep("exits", lambda: of_exits(one_size, options.dtypes, options.threads))
    data = os.environ.get("FIQA_FAST_TEST_DATA")
    if data is not None:
        keep("quality", lambda: of_quality(Path(data)))
    elif "quality" in options.parts:
        tell("without the quality of each exit: FIQA_FAST_TEST_DATA is not set")
    draw(results, path.with_suffix(""))
    tell(f"written to {path}")


if __name__ == "__main__":
    main()
