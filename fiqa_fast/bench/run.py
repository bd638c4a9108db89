# SPDX-License-Identifier: Apache-2.0
"""A whole measurement: everyone prepared and compared, then raced, one batch size at a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..scorer import Scorer
from . import memory, stages, startup
from .agreement import agreement
from .entries import Absent, Entry
from .facts import machine, versions
from .gemm import Products, products
from .peers import compiled
from .peers.everyone import entries_of
from .peers.exports import Exports
from .pixels import pixels_of
from .race import calls_lasting, race
from .result import BatchResult, Contender, Missing, Report, result_of
from .subject import Subject

__all__ = ["ALSO", "Plan", "measure"]

ALSO = ("decode", "memory", "startup")
# Whose scores are compared: enough for ranks.
_COMPARED = 64
# Inputs take turns, so that no turn finds its own in the cache.
_DISTINCT_TURNS = 4
# A turn lasts so long even for the fastest: its first calls find idle threads and cold caches.
_TURN_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        batch_sizes: images per call. A turn is as many images as the largest has, or more where
            somebody is done with those in no time.
        repeat: rounds of a race.
        seconds: of a race after which no round begins but the first two.
        peers: whether other engines take part, or the eager published computation alone.
        only: take entries alone whose name holds one of these texts; all, where there are none.
        also: some of ``ALSO``.
        inputs: where the images come from, for the report.
    """

    batch_sizes: Sequence[int]
    repeat: int
    seconds: float
    peers: bool = False
    only: Sequence[str] = ()
    also: Sequence[str] = ()
    inputs: Sequence[str] = ()

    @property
    def turn(self) -> int:
        """Images of a turn, at least."""
        return max(self.batch_sizes)

    @property
    def images(self) -> int:
        """Distinct ones that are asked for."""
        return max(_DISTINCT_TURNS * self.turn, _COMPARED)

    def takes(self, name: str) -> bool:
        """Whether an entry of this name takes part."""
        return not self.only or any(text in name for text in self.only)


def measure(
    subject: Subject,
    scorers: Mapping[str, Scorer],
    plan: Plan,
    images: Sequence[bytes],
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure, in the arithmetics that the subject's ``scorers`` are of.

    ``images`` are encoded; ``tell`` hears what goes on.
    """
    torch.set_num_threads(subject.threads)
    report = Report(
        subject=subject.describe(),
        machine=machine(subject.device),
        versions=versions(),
        inputs=list(plan.inputs) or "random",
        repeat=plan.repeat,
        seconds=plan.seconds,
    )
    exports = Exports(subject)
    try:
        everyone = [
            entry
            for dtype in scorers
            for entry in entries_of(subject, dtype, exports, scorers.__getitem__, plan.peers)
            if plan.takes(entry.name)
        ]
        races = _Races(subject, scorers, plan, everyone, images, tell)
        report.batches = [races.run(batch_size) for batch_size in plan.batch_sizes]
    finally:
        exports.close()
    if "memory" in plan.also:
        raced = {(line.name, line.dtype) for batch in report.batches for line in batch.lines}
        report.memory = [
            _memory(subject, entry, plan, tell)
            for entry in everyone
            if (entry.name, entry.dtype) in raced
        ]
    if "decode" in plan.also:
        for dtype, scorer in scorers.items():
            tell(f"decoding beside the model, {dtype}")
            report.stages[dtype] = stages.measured(
                scorer, images, plan.turn, plan.repeat, plan.seconds
            )
    if "startup" in plan.also:
        tell("start-up")
        report.startup = startup.measured(subject, images[0], plan.repeat, plan.seconds)
    return report


class _Races:
    """The races of a measurement: the same entries and images, one batch size at a time."""

    def __init__(
        self,
        subject: Subject,
        scorers: Mapping[str, Scorer],
        plan: Plan,
        everyone: Sequence[Entry],
        images: Sequence[bytes],
        tell: Callable[[str], None],
    ) -> None:
        self.subject, self.plan, self.scorers = subject, plan, scorers
        self.everyone, self.tell = everyone, tell
        self.pixels = pixels_of(images, subject.model.config.img_size, plan.images)
        tell("published scores, to compare with")
        self.exact = subject.exact(self.pixels[: max(_COMPARED, plan.turn)])

    def run(self, batch_size: int) -> BatchResult:
        """Prepare everyone for a batch size, compare, and race."""
        batches = [part for part in self.pixels.split(batch_size) if len(part) == batch_size]
        contenders, missing = [], []
        for entry in self.everyone:
            self.tell(f"batch size {batch_size}: preparing {entry.key}")
            try:
                contenders.append(self._contender(entry, batch_size, batches))
            except Absent as reason:
                missing.append(Missing(entry.name, entry.dtype, str(reason)))
        bounds = self._products(batch_size)
        functions: dict[str, Callable[[Tensor], object]] = {
            each.entry.key: each.ready.run for each in contenders
        }
        calls = self.plan.turn // batch_size
        calls = max(calls, calls_lasting(_TURN_SECONDS, functions, batches[0]))
        for bound in bounds:
            bound.function(None)  # warms up, as comparing did for the others
            functions[bound.key] = bound.function
        times = race(
            functions,
            batches,
            repeat=self.plan.repeat,
            calls=calls,
            seconds=self.plan.seconds,
            told=lambda number: self.tell(
                f"batch size {batch_size}: round {number} of {self.plan.repeat}"
            ),
        )
        result = result_of(batch_size, contenders, bounds, missing, times)
        # The next batch size has programs of its own.
        del contenders, functions
        compiled.forget()
        gc.collect()
        return result

    def _contender(self, entry: Entry, batch_size: int, batches: Sequence[Tensor]) -> Contender:
        """Prepared, and compared: verify, then time."""
        try:
            start = time.perf_counter()
            ready = entry.prepare(batch_size)
            seconds = time.perf_counter() - start
            count = len(self.exact) // batch_size
            scores = torch.cat([ready.run(batch) for batch in batches[:count]])
        except Absent:
            raise
        except Exception as error:
            if entry.graph == "ours":
                raise
            raise Absent(f"{type(error).__name__}: {error}") from error
        compared = agreement(scores, self.exact[: len(scores)])
        return Contender(entry, ready, seconds, compared)

    def _products(self, batch_size: int) -> list[Products]:
        if not self.plan.takes("GEMM"):
            return []
        config, device = self.subject.model.config, self.subject.device
        return [
            found
            for dtype, scorer in self.scorers.items()
            for found in products(config, scorer._engine.last_stage, batch_size, dtype, device)
        ]


def _memory(
    subject: Subject, entry: Entry, plan: Plan, tell: Callable[[str], None]
) -> dict[str, Any]:
    tell(f"memory of {entry.key}")
    facts: dict[str, Any] = {"name": entry.name, "dtype": entry.dtype}
    try:
        return {**facts, **memory.measured(subject, entry, max(plan.batch_sizes))}
    except Absent as reason:
        return {**facts, "missing": str(reason)}
