# SPDX-License-Identifier: Apache-2.0
"""Times of functions that take turns on inputs that no cache holds any more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

Timer = Callable[[Callable[[], object]], float]
# About 10 ms at any GPU's clock.
_SLEEP_CYCLES = 20_000_000
_LONGEST_SLEEP = 8 * _SLEEP_CYCLES


def host_seconds(burst: Callable[[], object]) -> float:
    start = time.perf_counter()
    burst()
    return time.perf_counter() - start


def cuda_seconds(burst: Callable[[], object]) -> float:
    """By events. The device sleeps while the host enqueues, so that it never waits for the host."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = _SLEEP_CYCLES
    while True:
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        start.record()
        burst()
        end.record()
        slept_long_enough = not start.query()
        end.synchronize()
        if slept_long_enough or cycles >= _LONGEST_SLEEP:
            return start.elapsed_time(end) / 1e3
        cycles *= 2


def copies_needed(bytes_per_call: int, cache_bytes: int) -> int:
    """How many inputs to rotate: between two readings of one, others fill the cache twice."""
    return 1 + max(1, -(-2 * cache_bytes // bytes_per_call))


@dataclass(frozen=True)
class Statistics:
    """Seconds per call over the rounds."""

    median: float
    low: float  # quartiles
    high: float
    fastest: float


def statistics(seconds: Sequence[float]) -> Statistics:
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return Statistics(float(median), float(low), float(high), min(seconds))


def race(
    functions: dict[str, Callable[..., Any]],
    inputs: Sequence[tuple[Any, ...]],
    timer: Timer,
    rounds: int,
    calls: int,
) -> dict[str, Statistics]:
    """The functions take turns, ``calls`` calls each, and turns at going first.

    All draw from one rotation of the inputs. Outputs are kept as long as their input is out of
    turn, so that no call writes where the last one did.
    """
    turns = itertools.cycle(range(len(inputs)))
    kept: list[Any] = [None] * len(inputs)

    def burst(function: Callable[..., Any]) -> None:
        for i in itertools.islice(turns, calls):
            kept[i] = function(*inputs[i])

    for function in functions.values():  # warms up
        burst(function)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timer(lambda name=name: burst(functions[name])) / calls)
    return {name: statistics(values) for name, values in seconds.items()}


def as_json(times: Statistics) -> dict[str, float]:
    return {f"{name}_s": value for name, value in asdict(times).items()}
