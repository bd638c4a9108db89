# SPDX-License-Identifier: Apache-2.0
"""Runs items through a scorer: decode threads ahead of it, a scoring thread, rows in order.

    items -> [decode threads] -> batcher -> [scoring thread] -> sink, progress, statistics

The number of images between the two ends is bounded, and that of the bytes which a stream has
handed over, so memory does not grow with the gallery.
What decodes and torch release the interpreter while they work, so decoding, scoring and writing
overlap; where the scorer keeps all cores busy, decoding and scoring take turns (:mod:`.turns`).
A GPU has a second scoring thread, which sends a batch while another is computed.
The calling thread only waits, packs and writes; an interrupt reaches it at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fiqa_fast.cores import cores
from fiqa_fast.gallery.decoding import DecodeAhead, Decoded
from fiqa_fast.gallery.errors import ScoringError
from fiqa_fast.gallery.progress import Progress, SilentProgress
from fiqa_fast.gallery.sinks import Floats, Rows, Sink
from fiqa_fast.gallery.sources import Item
from fiqa_fast.gallery.statistics import ScoreStatistics
from fiqa_fast.gallery.turns import Turns
from fiqa_fast.reading import Reading

__all__ = ["Summary", "default_workers", "run"]

# Rows without an image that may gather before they are written, however empty the batch is.
_MAX_PENDING_ROWS = 4096


# uint8 [B, 3, size, size] -> an object with the outputs as attributes, each [B, ...]
Scoring = Callable[[torch.Tensor], Any]


@dataclass
class Summary:
    """What a run did. ``seconds`` run from the first item asked for to the table in its place.

    The other seconds are those of the stages, which overlap: the stage whose share of ``seconds``
    is near 1, or near ``workers`` for decoding and ``calls`` for scoring, is the one that the run
    waited for.
    """

    images: int = 0
    failed: int = 0
    resized: int = 0  # of another size than the model's
    reduced: int = 0  # of these, more than twofold
    seconds: float = 0.0
    workers: int = 1  # decode threads
    calls: int = 1  # batches in the scorer at a time
    source_seconds: float = 0.0  # finding the items, and reading those of streams
    decode_seconds: float = 0.0  # opening and decoding, summed over the threads
    scoring_seconds: float = 0.0  # inside the scorer, summed over the calls
    write_seconds: float = 0.0  # inside the sink
    statistics: ScoreStatistics = field(default_factory=ScoreStatistics)

    @property
    def scored(self) -> int:
        """Images with a score."""
        return self.images - self.failed

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds > 0 else float("nan")


def default_workers() -> int:
    """Return how many decode threads to use: one per core that this process may use, at most 16."""
    return min(16, cores())


def run(
    items: Iterable[Item],
    scorer: Scoring,
    sink: Sink,
    *,
    reading: Reading,
    outputs: Iterable[str] = ("score",),
    batch_size: int = 32,
    workers: int | None = None,
    by_turns: bool = False,
    calls: int = 1,
    progress: Progress | None = None,
    on_error: Callable[[str, str], None] | None = None,
) -> Summary:
    """Score ``items`` in order and write one row for each to ``sink``.

    ``scorer`` gets uint8 [B, 3, size, size], read as ``reading`` says, with B = ``batch_size`` (or
    some times as many, ``by_turns``) but for the last batches, and returns an object with the
    attributes named in ``outputs``, and ``score`` in any case.
    An image that cannot be decoded, or whose score is not finite, becomes a row with an error;
    ``on_error(key, text)`` hears of it too.
    Images are decoded while others are scored. ``by_turns`` they are only fetched meanwhile, which
    is faster where the scorer keeps all cores busy (:func:`fiqa_fast.gallery.fills_the_cores`).
    ``calls`` of the scorer run at a time, each in a thread: two for a scorer on a GPU.

    The sink is committed at the end, and aborted where anything raises; where that is the source,
    the items before are scored and written first. Raises :class:`ScoringError` where the scorer
    fails, and whatever the source or the sink raise.
    """
    workers = default_workers() if workers is None else workers
    vectors = [name for name in outputs if name != "score"]
    progress = SilentProgress() if progress is None else progress
    summary = Summary(workers=workers, calls=calls)
    start = time.perf_counter()
    turns = Turns() if by_turns else None
    decoded = DecodeAhead(items, reading, workers, batch_size, turns)
    scoring = ThreadPoolExecutor(calls, "fiqa_fast-score")
    running: deque[tuple[_Batch, Future[Values] | None]] = deque()
    memory = _Memory(reading.size)

    def finish() -> None:
        batch, job = running.popleft()
        rows = _rows(batch, job.result() if job is not None else None, score.shapes)
        memory.put_back(batch.memory)
        writing = time.perf_counter()
        sink.write(rows)
        summary.write_seconds += time.perf_counter() - writing
        _count(summary, batch, rows)
        if on_error is not None:
            for key, error in zip(rows.keys, rows.errors, strict=True):
                if error is not None:
                    on_error(key, error)
        progress.update(len(rows))

    try:
        score = _Scorer(scorer, reading.size, vectors, turns)
        for batch in _batches(decoded, batch_size, turns, memory):
            job = scoring.submit(score, batch.pixels) if batch.images else None
            running.append((batch, job))
            if len(running) > calls:  # write one batch while the next is being scored
                finish()
        while running:
            finish()
        if decoded.failure is not None:
            raise decoded.failure
        writing = time.perf_counter()
        sink.commit()
        summary.write_seconds += time.perf_counter() - writing
    except BaseException:  # an interrupt too must leave no half-written table
        sink.abort()
        raise
    finally:
        progress.close()
        decoded.close()
        scoring.shutdown(wait=False, cancel_futures=True)
    summary.source_seconds = decoded.source_seconds
    summary.decode_seconds = decoded.decode_seconds
    summary.scoring_seconds = score.seconds
    summary.seconds = time.perf_counter() - start
    return summary


class _Memory:
    """The batches' pixels, which go round: new memory costs more than what is copied into it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[torch.Tensor] = []

    def take(self, images: int) -> torch.Tensor:
        """Return room for so many images, or more: uint8 [N, 3, size, size]."""
        while self._free:
            memory = self._free.pop()
            if len(memory) >= images:
                return memory
        return torch.empty(images, 3, self._size, self._size, dtype=torch.uint8)

    def put_back(self, memory: torch.Tensor) -> None:
        self._free.append(memory)


@dataclass
class _Batch:
    """Consecutive rows; the images among them fill a batch wherever there are enough."""

    memory: torch.Tensor
    keys: list[str] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    images: int = 0  # rows without an error
    resized: int = 0
    reduced: int = 0

    def add(self, row: Decoded) -> None:
        self.keys.append(row.key)
        self.errors.append(row.error)
        if row.fitted is not None:
            self.memory.numpy()[self.images] = row.fitted.planes
            self.images += 1
            self.resized += row.fitted.resized
            self.reduced += row.fitted.reduction > 2

    @property
    def pixels(self) -> torch.Tensor:  # uint8 [B, 3, size, size]
        return self.memory[: self.images]


def _batches(
    decoded: DecodeAhead, batch_size: int, turns: Turns | None, memory: _Memory
) -> Iterator[_Batch]:
    batch: _Batch | None = None
    for row in decoded:
        if batch is None:
            images = batch_size if turns is None else batch_size * turns.batches
            batch = _Batch(memory.take(images))
        batch.add(row)
        if batch.images >= images or len(batch.keys) >= images + _MAX_PENDING_ROWS:
            yield batch
            batch = None
            decoded.look_ahead()
    if batch is not None:
        yield batch


Values = Mapping[str, Floats]  # "score" and the other outputs by name, each [B, ...]


class _Scorer:
    """The scorer with what it returns checked and brought to numpy, and its time taken."""

    def __init__(
        self, scorer: Scoring, size: int, vectors: Sequence[str], turns: Turns | None
    ) -> None:
        self.seconds = 0.0
        self._scorer = scorer
        self._turn = nullcontext if turns is None else turns.scoring
        self._adding = threading.Lock()
        self._names = ("score", *vectors)
        # A blank image tells the shapes, which a table needs before its first row; without
        # vectors they are known.
        self.shapes: dict[str, tuple[int, ...]] = {}
        if vectors:
            blank = self(torch.zeros(1, 3, size, size, dtype=torch.uint8))
            self.shapes = {name: blank[name].shape[1:] for name in vectors}
            self.seconds = 0.0

    def __call__(self, pixels: torch.Tensor) -> Values:
        start = time.perf_counter()
        try:
            with self._turn():
                result = self._scorer(pixels)
            values = {name: _to_numpy(getattr(result, name)) for name in self._names}
        except Exception as error:
            text = " ".join(str(error).split())
            raise ScoringError(f"the scorer failed: {type(error).__name__}: {text}") from error
        for name, value in values.items():
            if len(value) != len(pixels):
                raise ScoringError(
                    f"wanted {name} of {len(pixels)} images from the scorer, got {len(value)}"
                )
        with self._adding:
            self.seconds += time.perf_counter() - start
        return values


def _to_numpy(value: torch.Tensor | None) -> Floats:
    if value is None:
        raise ValueError("an output that was asked for is None")
    return value.detach().to("cpu", torch.float32).numpy()


def _rows(batch: _Batch, values: Values | None, shapes: Mapping[str, tuple[int, ...]]) -> Rows:
    """Spread the values of a batch's images over all its rows; what is not finite is an error."""
    n = len(batch.keys)
    errors = list(batch.errors)
    score = np.full(n, np.nan, np.float32)
    columns = {name: np.full((n, *shape), np.nan, np.float32) for name, shape in shapes.items()}
    good = np.array([error is None for error in errors], dtype=bool)
    if values is not None:
        score[good] = values["score"]
        for name, column in columns.items():
            column[good] = values[name]
    lost = good & ~np.isfinite(score)
    for column in columns.values():
        column[lost] = np.nan  # nor are they judged, say as too large for float16
    for i in np.flatnonzero(lost):
        errors[i] = f"wanted a finite score, got {score[i]}; try --dtype float32"
    return Rows(batch.keys, errors, score, columns)


def _count(summary: Summary, batch: _Batch, rows: Rows) -> None:
    good = np.array([error is None for error in rows.errors], dtype=bool)
    summary.images += len(rows)
    summary.failed += int(np.count_nonzero(~good))
    summary.resized += batch.resized
    summary.reduced += batch.reduced
    summary.statistics.add(rows.score[good])
