# SPDX-License-Identifier: Apache-2.0
"""The second pass: the crops of chosen images once more, and something made of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.sources import Item
from fiqa_fast.heatmap.maps import MapTable
from fiqa_fast.images import decode, describe, fit

__all__ = ["reread"]

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")
# Crops decoded ahead, per thread: enough to keep it busy.
_AHEAD = 8
_CHANGED = "the gallery changed while it was read"


def reread(
    items: Iterable[Item],
    table: MapTable,
    numbers: Collection[int],
    size: int,
    make: Callable[[int, Pixels], T],
    workers: int,
) -> Iterator[tuple[int, T | None]]:
    """``make(number, crop)`` of the images ``numbers`` of the gallery, in its order.

    ``items`` are those that ``table`` was made of; ``crop`` is uint8 RGB [size, size, 3], as the
    scorer saw it. ``make`` is called on worker threads. An image that can no longer be read gives
    None, and its error stands in the table.
    """
    wanted = set(numbers)

    def work(number: int, item: Item) -> T | str:
        try:
            if item.key != table.keys[number]:
                raise ImageError(_CHANGED)
            with item.open() as file:
                planes = fit(decode(file), size).planes
        except Exception as error:  # as in the first pass, this item's own
            return describe(error)
        return make(number, np.ascontiguousarray(planes.transpose(1, 2, 0)))

    running: deque[tuple[int, Future[T | str]]] = deque()

    def finish() -> tuple[int, T | None]:
        number, future = running.popleft()
        made = future.result()
        if not isinstance(made, str):
            return number, made
        table.fail(number, made)
        return number, None

    pool = ThreadPoolExecutor(workers, "fiqa_fast-paint")
    try:
        for number, item in enumerate(items):
            if not wanted:
                break
            if number in wanted:
                wanted.remove(number)
                running.append((number, pool.submit(work, number, item)))
                if len(running) > _AHEAD * workers:
                    yield finish()
        while running:
            yield finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for number in sorted(wanted):
        table.fail(number, _CHANGED)
        yield number, None
