# SPDX-License-Identifier: Apache-2.0
"""Decode threads ahead of the scorer, bounded in images and in bytes; images come in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.sources import Item
from fiqa_fast.gallery.sources.item import InMemory
from fiqa_fast.gallery.turns import Turns
from fiqa_fast.images import Fitted, describe
from fiqa_fast.reading import Reading

__all__ = ["DecodeAhead", "Decoded"]

# Items decoded by one task: enough that handing tasks over costs little, few enough that a batch
# is spread over all threads.
CHUNK = 8
# Encoded bytes of a stream that wait in memory, and of them in one task, where crops end and large
# images begin: a task takes the image that reaches the limit, and the queue the task that does.
MAX_HELD = 64 * 2**20
_CHUNK_HELD = 4 * 2**20
# Longer encoded images are not read before it is time to decode them.
_FETCHED = 256 * 2**10


@dataclass(slots=True)
class Decoded:
    """An item's pixels, or why it has none."""

    key: str
    fitted: Fitted | None
    error: str | None = None


class DecodeAhead:
    """The images of ``items`` as ``reading`` gives them, decoded two batches, or a turn, ahead.

    Where the source of the items fails, the images end there, and ``failure`` is why: what came
    before it is not lost.

    Attributes:
        source_seconds: spent in the source, by the thread that iterates.
        decode_seconds: spent opening, decoding and fitting, summed over the threads.
    """

    def __init__(
        self,
        items: Iterable[Item],
        reading: Reading,
        workers: int,
        batch_size: int,
        turns: Turns | None = None,
    ) -> None:
        self.failure: Exception | None = None
        self.source_seconds = self.decode_seconds = 0.0
        self._items, self._reading = items, reading
        self._workers, self._batch_size, self._turns = workers, batch_size, turns
        self._asks = True
        self._decoders = ThreadPoolExecutor(workers, "fiqa_fast-decode")
        self._readers = ThreadPoolExecutor(workers, "fiqa_fast-read") if turns else None

    def look_ahead(self) -> None:
        """Ask the source for more, as a turn of scoring begins.

        While images are decoded it would keep the interpreter from those that decode; without
        turns, it is asked all the time.
        """
        self._asks = True

    def close(self) -> None:
        """Let the threads go; what they have not begun is dropped."""
        for pool in (self._readers, self._decoders):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _window(self) -> int:
        """How many tasks to be ahead: two batches, or a turn, and something for every thread."""
        images = self._batch_size * (2 if self._turns is None else self._turns.batches)
        return -(-images // CHUNK) + self._workers

    def __iter__(self) -> Iterator[Decoded]:
        chunks = self._chunks()
        waiting: deque[tuple[Future[tuple[list[Decoded], float]], int]] = deque()
        waiting_bytes = 0
        while True:
            asks = self._asks or not waiting
            while asks and len(waiting) < self._window and waiting_bytes < MAX_HELD:
                chunk, held = next(chunks, ([], 0))
                if not chunk:
                    break
                waiting.append((self._submit(chunk), held))
                waiting_bytes += held
            if not waiting:
                return
            self._asks = self._turns is None
            future, held = waiting.popleft()
            decoded, seconds = future.result()
            waiting_bytes -= held
            self.decode_seconds += seconds
            yield from decoded

    def _submit(self, chunk: list[Item]) -> Future[tuple[list[Decoded], float]]:
        if self._readers is None or self._turns is None:
            return self._decoders.submit(_decode, chunk, self._reading)
        read = self._readers.submit(_fetch, chunk)
        return self._decoders.submit(_decode_in_turn, read, self._reading, self._turns)

    def _chunks(self) -> Iterator[tuple[list[Item], int]]:
        """Items for one task each, and the bytes that they hold."""
        source = iter(self._items)
        while self.failure is None:
            chunk: list[Item] = []
            held = 0
            start = time.perf_counter()
            try:
                while len(chunk) < CHUNK and held < _CHUNK_HELD:
                    item = next(source)
                    chunk.append(item)
                    held += item.held
            except StopIteration:
                pass
            except Exception as error:
                self.failure = error
            self.source_seconds += time.perf_counter() - start
            if not chunk:
                return
            yield chunk, held


def _decode(items: list[Item], reading: Reading) -> tuple[list[Decoded], float]:
    start = time.perf_counter()
    decoded = [_decode_item(item, reading) for item in items]
    return decoded, time.perf_counter() - start


def _fetch(items: list[Item]) -> tuple[list[Item], float]:
    start = time.perf_counter()
    fetched = [_fetch_item(item) for item in items]
    return fetched, time.perf_counter() - start


def _decode_in_turn(
    read: Future[tuple[list[Item], float]], reading: Reading, turns: Turns
) -> tuple[list[Decoded], float]:
    items, seconds = read.result()
    decoded = []
    for item in items:
        turns.wait()
        start = time.perf_counter()
        decoded.append(_decode_item(item, reading))
        seconds += time.perf_counter() - start
    return decoded, seconds


def _fetch_item(item: Item) -> Item:
    """Return the item with its bytes in memory; as it is where it is long or cannot be read."""
    if item.held:
        return item
    try:
        with item.open() as file:
            data = file.read(_FETCHED + 1)
    except Exception:  # says so again where it is decoded
        return item
    return item if len(data) > _FETCHED else Item(item.key, InMemory(data))


def _decode_item(item: Item, reading: Reading) -> Decoded:
    try:
        with item.open() as file:
            return Decoded(item.key, reading(file))
    except ImageError as error:
        return Decoded(item.key, None, str(error))
    except Exception as error:  # what a storage raises concerns this item alone
        return Decoded(item.key, None, describe(error))
