# SPDX-License-Identifier: Apache-2.0
"""Where the scorer keeps all cores busy: images are fetched beside it, and decoded between."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from fiqa_fast.gallery import Item, Rows, ScoringError, run, runner, turns
from fiqa_fast.gallery.turns import Turns, fills_the_cores
from fiqa_fast.images import Fitted
from fiqa_fast.reading import Reading

SIZE = 16


class Sink:
    def __init__(self) -> None:
        self.keys: list[str] = []

    def write(self, rows: Rows) -> None:
        self.keys += rows.keys

    def commit(self) -> None: ...
    def abort(self) -> None: ...


def encoded() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE)).save(file, "PNG")
    return file.getvalue()


PNG = encoded()


def mean(images: torch.Tensor) -> Any:
    return SimpleNamespace(score=images.float().mean((1, 2, 3)))


def test_images_are_fetched_beside_the_scorer_and_decoded_between() -> None:
    scoring = threading.Event()
    opened = 0
    decoded: list[bool] = []  # whether something was being scored
    waiting: list[int] = []  # images fetched, when a turn ended

    def opener() -> BinaryIO:
        nonlocal opened
        opened += 1
        return io.BytesIO(PNG)

    class Noted(Reading):
        def __call__(self, source: Any) -> Fitted:
            decoded.append(scoring.is_set())
            time.sleep(0.001)
            return super().__call__(source)

    def scorer(images: torch.Tensor) -> Any:
        scoring.set()
        time.sleep(0.3)  # so long that turns stay short
        waiting.append(opened - 32 * (len(waiting) + 1))
        scoring.clear()
        return mean(images)

    summary = run(
        [Item(str(i), opener) for i in range(160)],
        scorer,
        Sink(),
        reading=Noted(SIZE),
        batch_size=32,
        workers=2,
        by_turns=True,
    )
    assert summary.scored == 160
    assert opened == len(decoded) == 160
    assert all(images >= 32 for images in waiting[:-1])  # the whole of the next turn
    assert sum(decoded) <= 5 * 2  # those that each thread had begun when a turn began
    assert summary.decode_seconds < summary.scoring_seconds  # without the time they waited


def test_the_source_is_not_asked_while_images_are_decoded() -> None:
    decoded = 0
    asked: list[int] = []  # images decoded until then

    def source() -> Iterator[Item]:
        for i in range(320):
            asked.append(decoded)
            yield Item(str(i), lambda: io.BytesIO(PNG))

    class Counting(Reading):
        def __call__(self, source: Any) -> Fitted:
            nonlocal decoded
            time.sleep(0.002)
            decoded += 1
            return super().__call__(source)

    def scorer(images: torch.Tensor) -> Any:
        time.sleep(0.3)  # so long that turns stay short
        return mean(images)

    summary = run(
        source(),
        scorer,
        Sink(),
        reading=Counting(SIZE),
        batch_size=32,
        workers=2,
        by_turns=True,
    )
    assert summary.scored == 320
    # Behind each turn of 32; two tasks of eight may have been decoded ahead.
    assert all(images % 32 <= 2 * 8 for images in asked)


def test_what_is_long_is_not_fetched_before_its_turn() -> None:
    long = PNG + bytes(300 * 2**10)
    read: list[int] = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    items = [Item(str(i), lambda: File(long)) for i in range(20)]
    summary = run(items, mean, Sink(), reading=Reading(SIZE), batch_size=4, by_turns=True)
    assert summary.scored == 20
    assert read.count(256 * 2**10 + 1) == 20
    assert read.count(len(long)) == 20


def test_an_item_that_fails_once_may_succeed_in_its_turn() -> None:
    tries = 0

    def opener() -> BinaryIO:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("the storage is busy")
        return io.BytesIO(PNG)

    assert run([Item("a", opener)], mean, Sink(), reading=Reading(SIZE), by_turns=True).scored == 1


def test_images_ahead_are_bounded() -> None:
    taken = written = ahead = 0

    def endless() -> Iterator[Item]:
        nonlocal taken, ahead
        for i in range(4000):
            taken += 1
            ahead = max(ahead, taken - written)
            yield Item(f"{i:05}", lambda: io.BytesIO(PNG))

    class Counting(Sink):
        def write(self, rows: Rows) -> None:
            nonlocal written
            written += len(rows)
            super().write(rows)

    sink = Counting()
    run(endless(), mean, sink, reading=Reading(SIZE), batch_size=16, workers=4, by_turns=True)
    assert sink.keys == [f"{i:05}" for i in range(4000)]
    # A turn being scored, one written, one packed and one decoded, and a chunk for each thread.
    assert ahead <= 4 * 8 * 16 + 8 * (4 + 1)


def test_a_failing_scorer_lets_waiting_threads_go() -> None:
    def failing(images: torch.Tensor) -> Any:
        time.sleep(0.05)
        raise RuntimeError("no luck")

    items = [Item(str(i), lambda: io.BytesIO(PNG)) for i in range(500)]
    with pytest.raises(ScoringError, match="no luck"):
        run(items, failing, Sink(), reading=Reading(SIZE), batch_size=8, by_turns=True)
    deadline = time.monotonic() + 5
    while any(t.name.startswith("fiqa_fast-decode") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_turns_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: now))
    taking = Turns()
    lengths = []
    for seconds in (*[0.1] * 5, 0.5, 2.0, 2.0, 0.1, *[2.0] * 4):
        now += seconds
        with taking.scoring():
            pass
        lengths.append(taking.batches)
    assert lengths == [2, 4, 8, 8, 8, 8, 4, 2, 4, 2, 1, 1, 1]


def test_who_fills_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "cores", lambda: 8)
    asked = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        cpu = torch.device("cpu")
        assert [fills_the_cores(cpu, n) for n in (1, 2, 3)] == [False, True, True]
        assert not fills_the_cores(torch.device("cuda"), 2)
    finally:
        torch.set_num_threads(asked)


@pytest.mark.parametrize(("there", "turns_taken"), [(1, True), (10_000, False)])
def test_the_command_takes_turns_where_no_core_is_free(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, turns_taken: bool
) -> None:
    taken: list[Turns] = []

    def taking() -> Turns:
        taken.append(Turns())
        return taken[-1]

    monkeypatch.setattr(turns, "cores", lambda: there)
    monkeypatch.setattr(runner, "Turns", taking)
    (tmp_path / "a.png").write_bytes(PNG)
    assert cli("score", tmp_path, "-o", tmp_path / "out.csv", "--exit", 1).status == 0
    assert bool(taken) == turns_taken


def test_scores_are_the_same_either_way() -> None:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(70):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(file, "PNG")
        files.append(file.getvalue())

    class Scores(Sink):
        def __init__(self) -> None:
            super().__init__()
            self.scores: list[float] = []

        def write(self, rows: Rows) -> None:
            self.scores += rows.score.tolist()

    sinks = [Scores(), Scores()]
    for by_turns, sink in zip((False, True), sinks, strict=True):
        items = [Item(str(i), lambda data=data: io.BytesIO(data)) for i, data in enumerate(files)]
        run(items, mean, sink, reading=Reading(SIZE), batch_size=4, by_turns=by_turns)
    assert sinks[0].scores == sinks[1].scores
