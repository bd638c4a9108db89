# SPDX-License-Identifier: Apache-2.0
"""What ``docs/scale.md`` is computed from: work per image, per row and per start, measured here.

Work is time of the processor, summed over cores: other load on the machine changes it little.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch

import fiqa_fast
from bench_gallery import Nowhere, jpegs, load, processor, write_record
from fiqa_fast.gallery import Item, Rows, fills_the_cores, open_sources, run
from fiqa_fast.gallery.sinks import plan_output
from fiqa_fast.gallery.store import Store
from fiqa_fast.gallery.store.done import Digests
from fiqa_fast.reading import Reading

MODELS = (("starter", 2), ("starter", 4), ("starter", 8), ("vit_s", 4), ("vit_s", 12))
_ROWS = 400_000


@dataclass
class Work:
    """Seconds of processor time, all cores."""

    seconds: float = 0.0


@contextmanager
def work(who: int = resource.RUSAGE_SELF) -> Iterator[Work]:
    """Measure the block, or the processes that ended in it."""
    spent = Work()
    start = _used(who)
    yield spent
    spent.seconds = _used(who) - start


def _used(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def images(folder: Path, count: int) -> dict[str, Any]:
    """Core-seconds of reading, decoding and scoring one crop, by model and exit."""
    path = folder / "crops.rec"
    found = {}
    for name, exit_block in MODELS:
        model = load(name)
        scorer = fiqa_fast.Scorer(model, exit=exit_block, gauge=None)
        count_here = count if name == "starter" else count // 8
        write_record(path, jpegs(), 256)
        reading = Reading(model.config.img_size)
        by_turns = fills_the_cores(scorer.device)
        run(_items(path), scorer, Nowhere(), reading=reading, by_turns=by_turns)  # warm
        write_record(path, jpegs(), count_here)
        with work() as spent:
            run(_items(path), scorer, Nowhere(), reading=reading, by_turns=by_turns)
        found[f"{name}, exit {exit_block}"] = {
            "core-seconds": spent.seconds / count_here,
            "dtype": str(scorer.dtype).removeprefix("torch."),
        }
    return found


def _items(path: Path) -> Iterator[Item]:
    return (item for source in open_sources([path]) for item in source)


def rows(folder: Path) -> dict[str, float]:
    """Bytes and core-seconds per row: parts, the table, and passing over what is done."""
    found = {}
    for label, outputs, dtype, count in (
        ("score", ("score",), "float32", _ROWS),
        ("512-d float16", ("score", "embedding"), "float16", _ROWS // 20),
    ):
        path = folder / "rows.parquet"
        layout = plan_output(str(path), outputs, dtype=dtype)
        store = Store(layout, {"settings": label})
        rng = np.random.default_rng(0)
        keys = [f"shard-{i // 10_000:06}.tar/{i % 10_000:09}.jpg" for i in range(count)]
        for first in range(0, count, 1000):
            some = keys[first : first + 1000]
            vectors = {
                name: rng.standard_normal((len(some), 512)).astype(np.float32)
                for name in outputs[1:]
            }
            scores = rng.normal(0.8, 0.1, len(some)).astype(np.float32)
            store.add(Rows(some, [None] * len(some), scores, vectors), range(first, first + 1000))
        store.writer.flush()
        parts = sum(part.stat().st_size for part in Path(store.folder).glob("part-*"))
        with work() as spent:
            store.commit()
        found[f"bytes of parts, {label}"] = parts / count
        found[f"bytes of the table, {label}"] = path.stat().st_size / count
        found[f"core-seconds to finish, {label}"] = spent.seconds / count
        if label == "score":
            again = Store(layout, {"settings": label})
            with work() as spent:
                pending = again.pending(enumerate(Item(key, io.BytesIO) for key in keys))
                assert not list(pending)
            again.abort()
            found["core-seconds to pass over a row"] = spent.seconds / count
        os.unlink(path)
    found["bytes of memory per finished row of a changed gallery"] = Digests(
        keys
    ).values.nbytes / len(keys)
    return found


def start(folder: Path) -> dict[str, float]:
    """What a run costs before its first image: imports, the model, the lock."""
    path = folder / "one.rec"
    write_record(path, jpegs(), 1)
    code = "import sys; sys.path.remove(''); from fiqa_fast.cli import main; main()"
    command = [sys.executable, "-c", code, "score", str(path), "--quiet"]
    spent, walls = [], []
    for i in range(3):
        begun = time.perf_counter()
        with work(resource.RUSAGE_CHILDREN) as used:
            subprocess.run([*command, "-o", str(folder / f"{i}.parquet")], check=True, cwd=folder)
        spent.append(used.seconds)
        walls.append(time.perf_counter() - begun)
    return {"core-seconds": sorted(spent)[1], "seconds": sorted(walls)[1]}


def measure(count: int) -> dict[str, Any]:
    """Return all costs."""
    sizes = [len(data) for data in jpegs()]
    with tempfile.TemporaryDirectory() as folder:
        return {
            "images": images(Path(folder), count),
            "rows": rows(Path(folder)),
            "start": start(Path(folder)),
            "bytes of a crop": sum(sizes) / len(sizes),
            "threads": torch.get_num_threads(),
            "processor": processor(),
            "versions": {
                "fiqa_fast": fiqa_fast.__version__,
                "torch": torch.__version__.split("+")[0],
                "pyarrow": pyarrow.__version__,
            },
        }
