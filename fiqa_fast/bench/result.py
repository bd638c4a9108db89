# SPDX-License-Identifier: Apache-2.0
"""What was measured, as data: the report, its batch sizes, and their lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .agreement import Agreement
from .entries import Entry, Ready
from .gemm import Products
from .spread import Spread, latency, ratio, spread

__all__ = ["SCHEMA", "BatchResult", "Bound", "Contender", "Line", "Missing", "Report", "result_of"]

SCHEMA = 1

_PUBLISHED = "eager published, float32"

Times = Mapping[str, Sequence[Sequence[float]]]  # seconds by key, round and call


@dataclass(frozen=True)
class Contender:
    """An entry that is prepared and compared."""

    entry: Entry
    ready: Ready
    prepare_seconds: float
    agreement: Agreement


@dataclass(frozen=True)
class Line:
    """An entry's figures.

    Attributes:
        executes: the arithmetic that the engine says it computes in.
        prepare_seconds: of conversion and compilation, which are not in the rates.
        over_published: its rate over that of the eager published computation in float32.
        ours_over_it: the rate of fiqa_fast in the same arithmetic over its own.
        latency_ms: of single images, where the batch size is 1.
        seconds: of each round's turn; those of one round belong together.
    """

    name: str
    engine: str
    graph: str
    streams: int
    dtype: str
    executes: str
    prepare_seconds: float
    agreement: Agreement
    images_per_second: Spread
    over_published: Spread | None
    ours_over_it: Spread | None
    latency_ms: dict[str, float | int] | None
    seconds: list[float]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Bound:
    """What an engine would reach that only multiplied, at the rate of this library.

    Attributes:
        gflops: 10^9 operations per second of the products.
        gflop_per_image: 10^9 operations of the blocks that the score needs.
        ours_of_it: the share of the bound that fiqa_fast reaches in this arithmetic.
    """

    library: str
    dtype: str
    gflops: Spread
    gflop_per_image: float
    images_per_second: Spread
    ours_of_it: Spread | None
    seconds: list[float]


@dataclass(frozen=True)
class Missing:
    """An entry that takes no part, and why."""

    name: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class BatchResult:
    """One race.

    Attributes:
        images: of a turn.
        ratios: of rates, the median over the rounds: ``ratios[a][b]`` is a over b.
    """

    batch_size: int
    images: int
    rounds: int
    lines: list[Line]
    bounds: list[Bound]
    missing: list[Missing]
    ratios: dict[str, dict[str, float]]

    def best(self) -> list[Line]:
        """Of each engine, graph and arithmetic the faster number of streams."""
        fastest: dict[tuple[str, str, str], Line] = {}
        for line in self.lines:
            key = (line.engine, line.graph, line.dtype)
            other = fastest.setdefault(key, line)
            if other.images_per_second.median < line.images_per_second.median:
                fastest[key] = line
        return list(fastest.values())

    def bound(self, dtype: str) -> Bound | None:
        """That of the faster library."""
        bounds = [bound for bound in self.bounds if bound.dtype == dtype]
        return max(bounds, key=lambda b: b.images_per_second.median, default=None)


@dataclass
class Report:
    """A whole measurement."""

    subject: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    inputs: Sequence[str] | str
    repeat: int
    seconds: float
    batches: list[BatchResult] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)
    startup: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Numbers that are none become null, which JSON knows."""
        content: dict[str, Any] = _plain({"schema": SCHEMA, **dataclasses.asdict(self)})
        return content


def result_of(
    batch_size: int,
    contenders: Sequence[Contender],
    products: Sequence[Products],
    missing: Sequence[Missing],
    times: Times,
) -> BatchResult:
    """The figures of a race; ``times`` has the keys of all contenders and products."""
    turns = {key: [sum(calls) for calls in rounds] for key, rounds in times.items()}
    some = next(iter(times.values()), ())
    images = batch_size * (len(some[0]) if some else 0)

    def ours_over(dtype: str, seconds: Sequence[float]) -> Spread | None:
        ours = turns.get(f"fiqa_fast, {dtype}")
        return None if ours is None else ratio(seconds, ours)

    def line(of: Contender) -> Line:
        entry, seconds = of.entry, turns[of.entry.key]
        published = turns.get(_PUBLISHED)
        calls = [call for round in times[entry.key] for call in round]
        return Line(
            name=entry.name,
            engine=entry.engine,
            graph=entry.graph,
            streams=entry.streams,
            dtype=entry.dtype,
            executes=of.ready.executes,
            prepare_seconds=of.prepare_seconds,
            agreement=of.agreement,
            images_per_second=spread([images / turn for turn in seconds]),
            over_published=None if published is None else ratio(published, seconds),
            ours_over_it=ours_over(entry.dtype, seconds),
            latency_ms=latency(calls) if batch_size == 1 else None,
            seconds=seconds,
            facts=of.ready.facts,
        )

    def bound(of: Products) -> Bound:
        seconds = [turn * of.needed / of.done for turn in turns[of.key]]
        return Bound(
            library=of.library,
            dtype=of.dtype,
            gflops=spread([images * of.done / turn / 1e9 for turn in turns[of.key]]),
            gflop_per_image=of.needed / 1e9,
            images_per_second=spread([images / turn for turn in seconds]),
            ours_of_it=ours_over(of.dtype, seconds),
            seconds=seconds,
        )

    keys = [of.entry.key for of in contenders]
    return BatchResult(
        batch_size=batch_size,
        images=images,
        rounds=len(some),
        lines=[line(of) for of in contenders],
        bounds=[bound(of) for of in products],
        missing=list(missing),
        ratios={a: {b: ratio(turns[b], turns[a]).median for b in keys if b != a} for a in keys},
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
