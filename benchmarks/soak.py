# SPDX-License-Identifier: Apache-2.0
"""Memory of a long run: ``fiqa-fast score`` over many crops, watched once a second.

python benchmarks/soak.py [--images 200000] [--model vit_s] [--exit 8] [-o docs/soak.svg]
    [--json FILE]

The crops of ``examples/``, repeated under new keys, are written into an MXNet record file and a tar
archive and scored by the real command. Memory is the resident memory of the process and its
children; how many images were scored by then is read off the parts that the run has stored. The
slope is that of a straight line through all samples after the first tenth of the images (5,000).

The model alone, on pixels that lie ready, is timed in a process of its own before, between and
after the runs: ``of model`` is a run's images/s over the mean of its neighbours, and ``bound`` what
decoding, which takes core time too, leaves of the model's speed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet
import torch
from PIL import features
from safetensors.torch import save_file

import fiqa_fast
from bench_gallery import jpegs, load, processor, write_record, write_tar
from fiqa_fast import figures
from fiqa_fast.cores import cores
from fiqa_fast.gallery.store import state_folder

WRITERS: dict[str, Callable[[Path, list[bytes], int], None]] = {
    "rec": write_record,
    "tar": write_tar,
}
_MIB = 2**20
_WARM = 0.1  # of the images, and at least so many
_WARM_IMAGES = 5000


@dataclass
class Watch:
    """One run of the command, and what was seen of it."""

    command: list[str]
    output: Path
    every: float = 1.0
    samples: list[tuple[float, float]] = field(default_factory=list)  # images scored, MiB
    report: str = ""

    def run(self) -> None:
        """Run it to its end. Raises ``RuntimeError`` where it fails."""
        known: dict[str, int] = {}
        with tempfile.TemporaryFile() as log:
            # Not here: `python -m` would take the source tree for the package.
            process = psutil.Popen(self.command, stderr=log, cwd=tempfile.gettempdir())
            due = time.monotonic()
            while process.poll() is None:
                self.samples.append((self._scored(known), _resident(process) / _MIB))
                due += self.every
                with suppress(psutil.TimeoutExpired):
                    process.wait(max(0.0, due - time.monotonic()))
            log.seek(0)
            self.report = log.read().decode()
        if process.returncode:
            raise RuntimeError(self.report)

    def _scored(self, known: dict[str, int]) -> int:
        """Count the rows of parts; each is opened once."""
        for part in Path(state_folder(str(self.output))).glob("part-*.parquet"):
            if part.name not in known:
                with suppress(OSError):  # the run has just finished and removed it
                    known[part.name] = pyarrow.parquet.read_metadata(part).num_rows
        return sum(known.values())

    def figures(self, images: int) -> dict[str, Any]:
        """Return what was seen as numbers."""
        scored, memory = np.array(self.samples).T
        # Between two parts the images go on: each sample gets its share of them.
        steps = np.flatnonzero(np.diff(scored, prepend=-1) > 0)
        scored = np.interp(np.arange(len(scored)), steps, scored[steps])
        warm = (scored >= max(_WARM * images, _WARM_IMAGES)) & (np.arange(len(scored)) <= steps[-1])
        slope = np.polyfit(scored[warm], memory[warm], 1)[0] if warm.sum() > 2 else float("nan")
        rate = re.search(r"scored in ([0-9.]+) s, ([0-9.]+) images/s", self.report)
        busy = re.search(r"busy: (.*)", self.report)
        assert rate is not None, self.report
        return {
            "seconds": float(rate[1]),
            "images/s": float(rate[2]),
            "busy": busy[1] if busy else "",
            "MiB per 100,000 images": round(1e5 * float(slope), 2),
            "MiB when warm": round(float(np.median(memory[warm])), 1),
            "MiB at most": round(float(memory.max()), 1),
            "samples": [
                [round(float(x)), round(float(y), 1)]
                for x, y in zip(*_thinned(scored, memory), strict=True)
            ],
        }


# Prints images/s and core-seconds per image of the model, and core-seconds of decoding.
_MODEL_ALONE = """
import sys, time
import torch, fiqa_fast
from fiqa_fast.reading import Reading
from bench_gallery import jpegs
exit_block, batch = int(sys.argv[1]), 32  # as a run takes them
model = fiqa_fast.load_model(*sys.argv[2:])
scorer, reading = fiqa_fast.Scorer(model, exit=exit_block), Reading(model.config.img_size)
images = jpegs()
pixels = torch.stack([torch.from_numpy(reading(image).planes) for image in images])
pixels = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch]
for _ in range(20):
    scorer(pixels)
calls, start, busy = 0, time.perf_counter(), time.process_time()
while time.perf_counter() - start < 15:
    scorer(pixels)
    calls += 1
rate = batch * calls / (time.perf_counter() - start)
model_core = (time.process_time() - busy) / batch / calls
busy = time.process_time()
for _ in range(500):
    for image in images:
        reading(image)
print(rate, model_core, (time.process_time() - busy) / 500 / len(images))
"""


def model_alone(exit_block: str, model: list[str]) -> dict[str, float]:
    """Return the model's own speed; ``model`` is what load_model takes."""
    command = [sys.executable, "-c", _MODEL_ALONE, exit_block, *model]
    printed = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent)},
    )
    rate, model, decode = map(float, printed.stdout.split())
    return {
        "images/s": round(rate, 1),
        "core ms per image": round(1000 * model, 4),
        "decode core ms per image": round(1000 * decode, 4),
    }


def _resident(process: psutil.Process) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
    return total


def _thinned(*columns: np.ndarray, most: int = 300) -> list[np.ndarray]:
    step = -(-len(columns[0]) // most)
    return [column[::step] for column in columns]


def soak(name: str, images: int, options: list[str], folder: Path) -> dict[str, Any]:
    """Write a container, score it and return the figures."""
    source, output = folder / f"crops.{name}", folder / f"{name}.parquet"
    WRITERS[name](source, jpegs(), images)
    size = source.stat().st_size
    code = "import sys; sys.path.remove(''); from fiqa_fast.cli import main; main()"
    command = [sys.executable, "-c", code, "score", str(source), "-o", str(output)]
    watch = Watch([*command, "--save-every", "2", *options], output)
    watch.run()
    rows = pyarrow.parquet.read_metadata(output).num_rows
    if rows != images:
        raise RuntimeError(f"wanted {images} rows, got {rows}")
    written = output.stat().st_size
    source.unlink()
    return {
        "bytes read per image": round(size / images, 1),
        "bytes written per row": round(written / images, 2),
        **watch.figures(images),
    }


def model_arguments(name: str, folder: Path) -> list[str]:
    """Return what load_model takes for a model: vit_s has random weights."""
    if name == "starter":
        return [name]
    path = folder / f"{name}.safetensors"
    save_file(load(name).state_dict(), path)
    return [str(path), f"arcface_{name}"]


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw memory over images scored."""
    figure = figures.new_figure(6.4, 3.6)
    axis = figure.subplots()
    for name, measured in found["sources"].items():
        scored, memory = np.array(measured["samples"]).T
        slope = measured["MiB per 100,000 images"]
        axis.plot(scored, memory, label=f".{name}: {slope:+.1f} MiB per 100,000 images")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("images scored")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("resident memory, MiB")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figures.save_figure(figure, str(path))


def main() -> None:
    """Soak each source, draw, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--model", choices=["starter", "vit_s"], default="starter")
    parser.add_argument("--exit", default="8")
    parser.add_argument("--sources", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--folder", type=Path, help="where the containers go for the time")
    parser.add_argument("-o", "--output", type=Path, help="figure to draw")
    parser.add_argument("--json", type=Path, help="figures to write")
    options, rest = parser.parse_known_args()
    found: dict[str, Any] = {
        "images": options.images,
        "model": options.model,
        "exit": options.exit,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "jpeg": "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg",
        "fiqa_fast": fiqa_fast.__version__,
        "sources": {},
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = model_arguments(options.model, Path(folder))
        flags = [
            text
            for pair in zip(("--model", "--architecture"), model, strict=False)
            for text in pair
        ]
        alone = [model_alone(options.exit, model)]
        for name in options.sources:
            command = [*flags, "--exit", options.exit, *rest]
            measured = soak(name, options.images, command, Path(folder))
            alone.append(model_alone(options.exit, model))
            near = statistics.mean(one["images/s"] for one in alone[-2:])
            measured["of model"] = round(measured["images/s"] / near, 3)
            found["sources"][name] = measured
    scoring = statistics.mean(one["core ms per image"] for one in alone)
    decode = statistics.mean(one["decode core ms per image"] for one in alone)
    found["model alone"] = alone
    found["bound"] = round(min(1.0, scoring / found["threads"] * cores() / (scoring + decode)), 3)
    shown = {name: {k: v for k, v in s.items() if k != "samples"} for name, s in
             found["sources"].items()}  # fmt: skip
    print(json.dumps({**found, "sources": shown}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.output:
        draw(found, options.output)


if __name__ == "__main__":
    main()
