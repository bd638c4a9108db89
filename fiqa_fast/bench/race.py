# SPDX-License-Identifier: Apache-2.0
"""Functions take turns on the same inputs, and their times are kept call by call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["calls_lasting", "order", "race"]

T = TypeVar("T")

# After its work is done an engine's threads look for more for some milliseconds, at the expense of
# whoever is next.
_PAUSE = 0.02


def order(names: Sequence[str], number: int) -> list[str]:
    """Who comes after whom in round ``number``: each is first in turn, and neighbours change."""
    first = number // 2 % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def calls_lasting(
    seconds: float,
    functions: Mapping[str, Callable[[T], Any]],
    batch: T,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """How many calls the fastest of the functions needs to last so long; each is called once."""
    took = []
    for function in functions.values():
        start = clock()
        function(batch)
        took.append(clock() - start)
    return max(1, math.ceil(seconds / max(min(took), 1e-6))) if took else 1


def race(
    functions: Mapping[str, Callable[[T], Any]],
    inputs: Sequence[T],
    *,
    repeat: int,
    calls: int = 1,
    seconds: float = float("inf"),
    told: Callable[[int], None] = lambda number: None,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = _PAUSE,
) -> dict[str, list[list[float]]]:
    """Seconds of each call, by function and by round.

    In a round every function is called ``calls`` times, one after the other, on the same inputs;
    rounds rotate the inputs and the order. There are ``repeat`` rounds, or as many as begin within
    ``seconds``, but two at least. ``told`` hears the number of each round that is done.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in functions}
    begin = clock()
    for number in range(repeat):
        if number >= 2 and clock() - begin > seconds:
            break
        batches = [inputs[(number * calls + i) % len(inputs)] for i in range(calls)]
        for name in order(list(functions), number):
            time.sleep(pause)
            took = []
            for batch in batches:
                start = clock()
                functions[name](batch)
                took.append(clock() - start)
            times[name].append(took)
        told(number + 1)
    return times
