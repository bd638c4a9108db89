# SPDX-License-Identifier: Apache-2.0
"""Thousands of shards, workers that die: does every row come out exactly once?

python benchmarks/simulate_shards.py [--shards 10000] [-o docs/measured/shards.json]

A scheduler hands shards to worker processes; each joins the folder of parts and scores its share
through the store that ``fiqa-fast score`` uses, with a scorer that takes no time. Workers kill
themselves with SIGKILL before or after a random change of the file system, the scheduler kills
others at random times, and sometimes gives a shard to two workers at once or once more after it
was done. It goes on until every shard is done; then the folder is read as one dataset.
"""

from __future__ import annotations

import argparse
import builtins
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow.dataset

# Galleries without a model are what the tests have already.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from galleries import SETTINGS, KeyContainer, hash_of, open_store, rows_of, value

from fiqa_fast.gallery import dataset
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.shares import containers, numbered

CHANGES = ("replace", "rename", "link", "unlink", "rmdir", "mkdir", "fsync", "open")
_FORK = multiprocessing.get_context("fork")  # to import torch once and not ten thousand times


class Gallery:
    """So many containers of different sizes."""

    def __init__(self, shards: int) -> None:
        self.shards = [
            KeyContainer([f"{k:04}.jpg" for k in range(20 + i * 7 % 40)], f"{i:05}.tar/")
            for i in range(shards)
        ]

    def pieces(self) -> Iterator[KeyContainer]:
        """Yield the containers."""
        return iter(self.shards)

    def keys(self) -> Iterator[str]:
        """Yield all keys."""
        return (item.key for shard in self.shards for item in shard)


@dataclass
class Fate:
    """Kills this process at a change of the file system, if so decided."""

    rng: random.Random
    left: float = math.inf

    def install(self) -> None:
        """Watch all changes."""
        for name in CHANGES:
            setattr(os, name, self._watched(getattr(os, name)))
        builtins.open = self._watched(builtins.open)

    def decide(self) -> None:
        """Decide whether to die, and when."""
        self.left = self.rng.randrange(60) if self.rng.random() < 0.5 else math.inf

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            before = self.left < 0 and self.rng.random() < 0.5
            if before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def work(folder: str, gallery: Gallery, seed: int, orders: Connection) -> None:
    """Score the shards that are ordered, until this process is killed."""
    fate = Fate(random.Random(seed))
    fate.install()
    parent = os.getppid()
    while True:
        while not orders.poll(5):
            if os.getppid() != parent:  # a killed scheduler leaves no workers behind
                return
        index = orders.recv()
        fate.decide()
        saving = fate.rng.choice((0.0, 1e9))  # every batch, or at the end only
        try:
            score_share(folder, gallery, index, saving, orders)
            orders.send(("done", index))
        except OutputError as error:
            if "another run is writing it" not in str(error):
                raise
            orders.send(("refused", index))


def score_share(
    folder: str, gallery: Gallery, index: int, saving: float, reports: Connection
) -> None:
    """What ``fiqa-fast score --shard index/count`` does, with scores that follow from keys."""
    count = len(gallery.shards)
    share = dataset.join(folder, index, count, SETTINGS, containers([gallery]))
    path = dataset.part_path(folder, index, count)
    store = open_store(path, settings={"share": vars(share)}, save_seconds=saving)
    keys: list[str] = []
    for item in store.pending(numbered([gallery], share)):
        keys.append(item.key)
        if len(keys) == 10:
            reports.send(("scored", len(keys)))
            store.write(rows_of(keys))
            keys = []
    if keys:
        reports.send(("scored", len(keys)))
        store.write(rows_of(keys))
    store.commit()


@dataclass
class Worker:
    """A process, what it does, and when it is killed."""

    process: Any
    orders: Connection
    shard: int | None = None
    killed_at: float = math.inf


@dataclass
class Scheduler:
    """Hands out shards until all are done, whoever dies."""

    folder: str
    gallery: Gallery
    rng: random.Random
    workers: list[Worker] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, workers: int) -> None:
        """Keep so many workers busy."""
        self.left = set(range(len(self.gallery.shards)))
        self.queue = sorted(self.left, key=lambda _: self.rng.random())
        self.workers = [self._start() for _ in range(workers)]
        while self.left or any(worker.shard is not None for worker in self.workers):
            for worker in self.workers:
                if worker.shard is None and self.left:
                    self._order(worker)
            soonest = min(worker.killed_at for worker in self.workers)
            timeout = None if soonest == math.inf else max(0.0, soonest - time.monotonic())
            ready = set(wait([worker.orders for worker in self.workers], timeout))
            for place, worker in enumerate(self.workers):
                if worker.killed_at < time.monotonic():
                    worker.process.kill()
                    worker.killed_at = math.inf
                    self.counts["killed by the scheduler"] += 1
                elif worker.orders in ready and not self._hear(worker):
                    self.workers[place] = self._bury(worker)
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()

    def _start(self) -> Worker:
        here, there = _FORK.Pipe()
        seed = self.rng.getrandbits(32)
        process = _FORK.Process(target=work, args=(self.folder, self.gallery, seed, there))
        process.start()
        there.close()
        self.counts["starts of workers"] += 1
        return Worker(process, here)

    def _order(self, worker: Worker) -> None:
        """Give a worker a shard: one that waits, one that another works on, or any."""
        busy = [other.shard for other in self.workers if other.shard is not None]
        while self.queue and self.queue[-1] not in self.left:
            self.queue.pop()
        draw = self.rng.random()
        if busy and (draw < 0.02 or not self.queue):
            worker.shard = self.rng.choice(busy)
            self.counts["given to two at once"] += 1
        elif draw < 0.04:
            worker.shard = self.rng.randrange(len(self.gallery.shards))
        else:
            worker.shard = self.queue.pop()
        if self.rng.random() < 0.1:
            worker.killed_at = time.monotonic() + self.rng.random() * 0.05
        self.counts["starts of shards"] += 1
        with suppress(BrokenPipeError):  # its death is heard of next
            worker.orders.send(worker.shard)

    def _hear(self, worker: Worker) -> bool:
        """Take in a worker's report; return whether it lives."""
        try:
            what, number = worker.orders.recv()
        except (EOFError, ConnectionResetError):
            return False
        if what == "scored":
            self.counts["rows scored"] += number
            return True
        self.counts[what] += 1
        worker.shard, worker.killed_at = None, math.inf
        if what == "done":
            self.left.discard(number)
        elif number in self.left:
            self.queue.insert(0, number)  # if it is in the queue twice, it is done twice
        return True

    def _bury(self, worker: Worker) -> Worker:
        worker.process.join()
        if worker.process.exitcode != -signal.SIGKILL:
            raise SystemExit(f"a worker ended with {worker.process.exitcode}")
        self.counts["deaths"] += 1
        if worker.shard is not None:
            self.left.add(worker.shard)  # a finished one too: something of it may lie about
            self.queue.append(worker.shard)
        worker.orders.close()
        return self._start()


def examine(folder: str, gallery: Gallery) -> dict[str, int]:
    """Read the folder as one dataset, and compare it with what should be there."""
    read = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    found = Counter(read["path"].to_pylist())
    expected = set(gallery.keys())
    wrong = 0
    columns = (read[name].to_pylist() for name in ("path", "score", "error"))
    for key, score, error in zip(*columns, strict=True):
        bad = hash_of(key) % 7 == 0
        wrong += (score, error) != ((None, f"bad {key}") if bad else (value(key), None))
    names = set(os.listdir(folder))
    parts = {dataset.part_name(i, len(gallery.shards)) for i in range(len(gallery.shards))}
    return {
        "rows wanted": len(expected),
        "rows": len(read),
        "rows missing": len(expected - set(found)),
        "rows twice": sum(times > 1 for times in found.values()),
        "rows of other values": wrong,
        "parts": len(names & parts),
        "files left over": len(names - parts - {"_gallery.json"}),
    }


def simulate(folder: str, shards: int, workers: int, seed: int = 0) -> dict[str, Any]:
    """Return what was done and what came out of it."""
    gallery = Gallery(shards)
    scheduler = Scheduler(folder, gallery, random.Random(seed))
    start = time.monotonic()
    scheduler.run(workers)
    seconds = time.monotonic() - start
    figures = {"shards": shards, "workers": workers, **scheduler.counts}
    figures.update(examine(folder, gallery))
    figures["rows scored again"] = figures["rows scored"] - figures["rows"]
    return {**figures, "seconds": round(seconds, 1)}


def main() -> None:
    """Simulate, print the figures, and fail unless every row is there once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = simulate(folder, options.shards, options.workers, options.seed)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    good = figures["rows"] == figures["rows wanted"]
    bad = ("rows missing", "rows twice", "rows of other values", "files left over")
    sys.exit(0 if good and not any(figures[name] for name in bad) else 1)


if __name__ == "__main__":
    main()
