# SPDX-License-Identifier: Apache-2.0
"""How much of the model's own speed a whole run keeps: ratios of interleaved turns, as JSON.

``python benchmarks/bench_gallery.py`` scores the crops of ``examples/`` as JPEGs, repeated under
new keys, from an MXNet record file and a tar archive, by turns with the scorer alone on pixels
that lie ready. ``--model vit_s`` takes random weights of that size. ``--threads`` below the number
of cores leaves the others to decoding. ``--beside`` decodes beside the model where the default
would be by turns with it.

Decoding is work too: where it shares its cores with the model, a run takes at least the
core-seconds of both over the number of cores. ``bound`` is the share of the model's speed that this
leaves, and ``kept`` the share of the bound that a run reaches.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fiqa_fast
from fiqa_fast.bench.stages import Nowhere, write_tar
from fiqa_fast.cores import cores
from fiqa_fast.gallery import fills_the_cores, open_sources, run
from fiqa_fast.gallery.runner import Summary, default_workers
from fiqa_fast.models.registry import ARCHITECTURES
from fiqa_fast.models.vit import FaceViT
from fiqa_fast.reading import Reading

CROPS = Path(__file__).parents[1] / "examples" / "crops"


def processor() -> str:
    """What this machine computes with."""
    amx = " with AMX" if torch.cpu._is_amx_tile_supported() else ""
    return torch.backends.cpu.get_cpu_capability() + amx


def jpegs() -> list[bytes]:
    """The crops as JPEGs of about the size that training sets store."""
    encoded = []
    for path in sorted(CROPS.iterdir()):
        if path.suffix in (".png", ".jpg"):
            file = io.BytesIO()
            Image.open(path).convert("RGB").save(file, "JPEG", quality=95)
            encoded.append(file.getvalue())
    return encoded


def write_record(path: Path, images: list[bytes], count: int) -> None:
    with path.open("wb") as file:
        for number, image in enumerate(itertools.islice(itertools.cycle(images), count)):
            record = struct.pack("<IfQQ", 0, 0.0, number, 0) + image
            file.write(struct.pack("<II", 0xCED7230A, len(record)))
            file.write(record + bytes(-len(record) % 4))


def load(name: str) -> FaceViT:
    if name != "vit_s":
        return fiqa_fast.load_model(name)
    torch.manual_seed(0)
    return FaceViT(ARCHITECTURES["arcface_vit_s"].config).eval()


def images_for(seconds: float, scorer: Callable[..., Any], some: torch.Tensor, batch: int) -> int:
    """Return how many images the model scores in about so many seconds, in whole batches."""
    pixels = some.repeat(-(-batch // len(some)), 1, 1, 1)[:batch]
    scorer(pixels)
    start = time.perf_counter()
    for _ in range(3):
        scorer(pixels)
    return batch * max(4, round(3 * seconds / (time.perf_counter() - start)))


def measure(name: str, threads: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Take turns and return the figures of one model at one number of threads."""
    torch.set_num_threads(threads)
    model = load(name)
    reading = Reading(model.config.img_size)
    scorer = fiqa_fast.Scorer(model, dtype=options.dtype, exit=options.exit)
    by_turns = not options.beside and fills_the_cores(scorer.device)
    workers = options.workers or default_workers()
    images = jpegs()
    planes = [torch.from_numpy(reading(image).planes) for image in images]
    count = images_for(options.seconds, scorer, torch.stack(planes), options.batch)
    paths = {"rec": folder / f"{count}.rec", "tar": folder / f"{count}.tar"}
    write_record(paths["rec"], images, count)
    write_tar(paths["tar"], images, count)

    ready = torch.stack(list(itertools.islice(itertools.cycle(planes), count)))

    def model_only() -> None:
        for batch in ready.split(options.batch):
            scorer(batch)

    summaries: dict[str, Summary] = {}

    def end_to_end(kind: str) -> None:
        (source,) = open_sources([str(paths[kind])])
        summaries[kind] = run(
            source,
            scorer,
            Nowhere(),
            reading=reading,
            batch_size=options.batch,
            workers=workers,
            by_turns=by_turns,
        )
        assert summaries[kind].scored == count

    def decode_alone() -> None:
        for image in itertools.islice(itertools.cycle(images), count):
            reading(image)

    turns: dict[str, Callable[[], None]] = {
        "model": model_only,
        "rec": lambda: end_to_end("rec"),
        "tar": lambda: end_to_end("tar"),
        "decode": decode_alone,
    }
    seconds: dict[str, list[float]] = {key: [] for key in turns}
    busy: dict[str, list[float]] = {key: [] for key in turns}  # core-seconds of all threads
    for turn in range(options.rounds + 1):
        for key in list(turns) if turn % 2 else list(turns)[::-1]:
            start, started = time.perf_counter(), time.process_time()
            turns[key]()
            if turn:  # the first warms up
                seconds[key].append(time.perf_counter() - start)
                busy[key].append(time.process_time() - started)
    core = {key: statistics.median(values) for key, values in busy.items()}
    median = {key: statistics.median(values) for key, values in seconds.items()}
    bound = 1.0
    if scorer.device.type == "cpu":
        # By core-seconds, which hold where other processes take some of the time.
        bound = min(1.0, core["model"] / threads * cores() / (core["model"] + core["decode"]))
    facts: dict[str, Any] = {
        "model": name,
        "device": scorer.device.type,
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "workers": workers,
        "by_turns": by_turns,
        "batch": options.batch,
        "exit": scorer.describe()["exit"],
        "images": count,
        "rounds": options.rounds,
        "model_images_per_second": count / median["model"],
        "core_ms_per_image": {key: 1000 * value / count for key, value in core.items()},
        "decode_over_model": core["decode"] / core["model"],
        "bound": bound,
    }
    for key in paths:
        ratios = [m / e for m, e in zip(seconds["model"], seconds[key], strict=True)]
        facts[key] = {
            "images_per_second": count / median[key],
            "of_model": statistics.median(ratios),
            "of_model_low_high": [min(ratios), max(ratios)],
            "kept": statistics.median(ratios) / bound,
            "scoring_share": summaries[key].scoring_seconds / summaries[key].seconds,
        }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["starter", "vit_s"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of the model per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--exit", type=int, help="the block to score at (default: the last)")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--beside", action="store_true", help="decode beside the model always")
    parser.add_argument("--threads", type=int, nargs="+", default=[cores()])
    parser.add_argument("--json", type=Path, help="figures to write")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, threads in itertools.product(options.model, options.threads):
            found.append(measure(name, threads, options, Path(folder)))
            print(json.dumps(found[-1], indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
