# SPDX-License-Identifier: Apache-2.0
"""Images per second of decoding alone, of the model alone, and of a whole run from an archive."""

from __future__ import annotations

import itertools
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ..gallery import Rows, fills_the_cores, open_sources, run
from ..gallery.runner import default_workers
from ..reading import Reading
from ..scorer import Scorer
from .race import race
from .spread import spread

__all__ = ["Nowhere", "measured", "write_tar"]

# A turn is long enough for what a run does at its beginning and end to be little of it.
_SECONDS = 2.0


class Nowhere:
    """A sink that keeps nothing: what is measured ends before it."""

    def write(self, rows: Rows) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


def write_tar(path: Path, images: Sequence[bytes], count: int) -> None:
    """``count`` images, the given ones again and again under new names."""
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(itertools.islice(itertools.cycle(images), count)):
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(image)
            archive.addfile(member, BytesIO(image))


def measured(
    scorer: Scorer,
    images: Sequence[bytes],
    batch_size: int,
    repeat: int,
    seconds: float,
    turn: float = _SECONDS,
) -> dict[str, Any]:
    """The three rates, of encoded ``images``; a turn takes the model so many seconds."""
    reading, workers = Reading(scorer.config.img_size), default_workers()
    planes = [torch.from_numpy(reading(image).planes) for image in images]
    batch = torch.stack(list(itertools.islice(itertools.cycle(planes), batch_size)))
    scorer(batch)
    start = time.perf_counter()
    scorer(batch)
    count = batch_size * max(2, round(turn / (time.perf_counter() - start)))
    ready = torch.stack(list(itertools.islice(itertools.cycle(planes), count)))
    repeated = list(itertools.islice(itertools.cycle(images), count))
    by_turns = fills_the_cores(scorer.device)
    with (
        tempfile.TemporaryDirectory(prefix="fiqa_fast-bench-") as folder,
        ThreadPoolExecutor(workers) as threads,
    ):
        path = Path(folder, "images.tar")
        write_tar(path, images, count)

        def decode(_: None) -> None:
            parts = [repeated[number::workers] for number in range(workers)]
            list(threads.map(lambda part: [reading(image) for image in part], parts))

        def model(_: None) -> None:
            for part in ready.split(batch_size):
                scorer(part)

        def total(_: None) -> None:
            (source,) = open_sources([str(path)])
            summary = run(
                source,
                scorer,
                Nowhere(),
                reading=reading,
                batch_size=batch_size,
                by_turns=by_turns,
            )
            assert summary.scored == count

        stages: dict[str, Callable[[None], None]] = {
            "decode": decode,
            "model": model,
            "total": total,
        }
        times = race(stages, [None], repeat=repeat, seconds=seconds)
    return {
        "images": count,
        "batch_size": batch_size,
        "decode_threads": workers,
        "images_per_second": {
            name: vars(spread([count / sum(calls) for calls in rounds]))
            for name, rounds in times.items()
        },
    }
