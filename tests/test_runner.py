# SPDX-License-Identifier: Apache-2.0
"""Order, errors, bounded memory, overlap and failure of a run, with a scorer made for the test."""

from __future__ import annotations

import io
import os
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

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery import (
    InputError,
    Item,
    Rows,
    ScoringError,
    open_sink,
    open_sources,
    run,
)
from fiqa_fast.gallery.progress import LineProgress, SilentProgress
from fiqa_fast.gallery.sources.item import InMemory
from fiqa_fast.gallery.statistics import ScoreStatistics
from fiqa_fast.reading import Reading

SIZE = 16


class Scorer:
    """The mean of the pixels, and what it was called with."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[int] = []
        self.seconds = seconds

    def __call__(self, images: torch.Tensor) -> Any:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, SIZE, SIZE)
        self.batches.append(len(images))
        time.sleep(self.seconds)
        score = images.float().mean((1, 2, 3))
        return SimpleNamespace(
            score=score, embedding=torch.stack([score, -score], 1), patch_map=images[:, 0].float()
        )


class Memory:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []
        self.state = "open"

    def write(self, rows: Rows) -> None:
        assert self.state == "open"
        self.rows.append(rows)

    def commit(self) -> None:
        self.state = "committed"

    def abort(self) -> None:
        self.state = "aborted"

    def flat(self) -> list[tuple[str, float | None, str | None]]:
        return [
            (key, None if error else float(score), error)
            for rows in self.rows
            for key, error, score in zip(rows.keys, rows.errors, rows.score, strict=True)
        ]


def png(value: int, size: int = SIZE) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(value) for value in range(256)]


def item(i: int) -> Item:
    return Item(f"{i:05}", lambda: io.BytesIO(PNGS[i % 256]))


def broken(i: int, error: Exception | None = None) -> Item:
    def fail() -> BinaryIO:
        if error is not None:
            raise error
        return io.BytesIO(b"no image")

    return Item(f"{i:05}", fail)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("by_turns", [False, True])
def test_rows_come_in_order_with_their_errors(
    batch_size: int, workers: int, by_turns: bool
) -> None:
    items = [broken(i) if i % 5 == 3 or 20 <= i < 40 else item(i) for i in range(101)]
    scorer, sink = Scorer(), Memory()
    told: list[str] = []
    summary = run(
        items,
        scorer,
        sink,
        reading=Reading(SIZE),
        batch_size=batch_size,
        workers=workers,
        by_turns=by_turns,
        on_error=lambda key, error: told.append(key),
    )
    failed = [i for i in range(101) if i % 5 == 3 or 20 <= i < 40]
    rows = sink.flat()
    assert [key for key, _, _ in rows] == [f"{i:05}" for i in range(101)]
    for i, (_, score, error) in enumerate(rows):
        assert (score is None) == (i in failed)
        if score is None:
            assert error is not None
            assert "got something else" in error
        else:
            assert score == i
    assert told == [f"{i:05}" for i in failed]
    assert sink.state == "committed"
    assert (summary.images, summary.failed, summary.scored) == (101, len(failed), 101 - len(failed))
    assert summary.statistics.minimum == 0
    assert summary.statistics.maximum == 100
    assert summary.statistics.median == np.median([i for i in range(101) if i not in failed])
    # Broken images do not make batches smaller.
    assert all(size % batch_size == 0 for size in scorer.batches[:-1])
    assert by_turns or set(scorer.batches[:-1]) <= {batch_size}


def test_any_exception_of_an_item_is_a_row() -> None:
    errors = [ImageError("bad"), OSError(5, "Input/output error"), ValueError("odd"), KeyError("k")]
    sink = Memory()
    run([broken(i, e) for i, e in enumerate(errors)], Scorer(), sink, reading=Reading(SIZE))
    assert [error for _, _, error in sink.flat()] == [
        "bad",
        "input/output error",
        "damaged image: odd",
        "damaged image: 'k'",
    ]


def test_scores_that_are_not_finite_are_errors() -> None:
    def scorer(images: torch.Tensor) -> Any:
        return SimpleNamespace(score=torch.tensor([1.0, float("nan"), float("inf")]))

    sink = Memory()
    summary = run([item(i) for i in range(3)], scorer, sink, reading=Reading(SIZE))
    assert summary.failed == 2
    assert [error for _, _, error in sink.flat()] == [
        None,
        "wanted a finite score, got nan; try --dtype float32",
        "wanted a finite score, got inf; try --dtype float32",
    ]
    assert summary.statistics.maximum == 1


def test_vectors_of_scores_that_are_not_finite_are_not_judged() -> None:
    def scorer(images: torch.Tensor) -> Any:
        score = torch.full((len(images),), float("nan"))
        return SimpleNamespace(score=score, embedding=torch.full((len(images), 2), 1e9))

    sink = Memory()
    run([item(0)], scorer, sink, reading=Reading(SIZE), outputs=("score", "embedding"))
    rows = sink.rows[0].narrowed("float16")
    assert np.isnan(rows.columns["embedding"]).all()


def test_other_outputs_follow_their_rows() -> None:
    items = [broken(0), *(item(i) for i in range(1, 6)), broken(6)]
    sink = Memory()
    run(
        items,
        Scorer(),
        sink,
        reading=Reading(SIZE),
        outputs=("score", "embedding", "patch_map"),
        batch_size=2,
    )
    embedding = np.concatenate([rows.columns["embedding"] for rows in sink.rows])
    maps = np.concatenate([rows.columns["patch_map"] for rows in sink.rows])
    assert embedding.shape == (7, 2)
    assert maps.shape == (7, SIZE, SIZE)
    for i in range(1, 6):
        assert embedding[i].tolist() == [i, -i]
        assert (maps[i] == i).all()
    assert np.isnan(embedding[[0, 6]]).all()


def test_a_gallery_of_broken_images_has_columns_too(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "out.parquet"), ["score", "embedding"], {})
    outputs = ("score", "embedding")
    summary = run(
        [broken(i) for i in range(9)], Scorer(), sink, reading=Reading(SIZE), outputs=outputs
    )
    assert summary.scored == 0
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "out.parquet")
    assert table["embedding"].null_count == table["score"].null_count == 9
    assert table.schema.field("embedding").metadata[b"shape"] == b"[2]"


def test_a_long_stretch_of_broken_images_is_written_as_it_goes() -> None:
    sink = Memory()
    run((broken(i) for i in range(10000)), Scorer(), sink, reading=Reading(SIZE), batch_size=8)
    assert len(sink.rows) == 3


def test_memory_is_bounded_however_long_the_gallery() -> None:
    taken = written = ahead = 0

    def endless() -> Iterator[Item]:
        nonlocal taken, ahead
        for i in range(3000):
            taken += 1
            ahead = max(ahead, taken - written)
            yield item(i)

    class Counting(Memory):
        def write(self, rows: Rows) -> None:
            nonlocal written
            written += len(rows)

    run(endless(), Scorer(0.001), Counting(), reading=Reading(SIZE), batch_size=16, workers=4)
    assert written == 3000
    # Two batches being scored, one being packed, the window of two and a chunk for each thread.
    assert ahead <= 5 * 16 + 8 * (4 + 1)


class Held(bytes):
    """Bytes that count how many of them are alive."""

    alive = most = 0

    def __new__(cls, data: bytes) -> Held:
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Held.alive -= 1


class SlowlyOpened(InMemory):
    def __call__(self) -> BinaryIO:
        time.sleep(0.03)
        return super().__call__()


@pytest.mark.parametrize(("mib", "count"), [(4, 40), (32, 10)])
def test_bytes_that_a_stream_hands_over_are_bounded(mib: int, count: int) -> None:
    large = PNGS[7] + bytes(mib * 2**20 - len(PNGS[7]))
    Held.most = 0
    items = (Item(str(i), SlowlyOpened(Held(large))) for i in range(count))
    summary = run(items, Scorer(), Memory(), reading=Reading(SIZE), workers=2)
    assert summary.scored == count
    # What waits, and what the source, its task and the threads have in hand.
    assert 64 // mib // 2 < Held.most <= 64 // mib + 4
    assert Held.alive == 0


def test_small_images_of_a_stream_are_bounded_by_their_number() -> None:
    Held.most = 0
    items = (Item(str(i), SlowlyOpened(Held(PNGS[7]))) for i in range(200))
    run(items, Scorer(), Memory(), reading=Reading(SIZE), workers=8)
    assert 64 < Held.most <= 2 * 32 + 8 * (8 + 1)


def test_decoding_and_scoring_overlap() -> None:
    def slow(i: int) -> Item:
        def opener() -> BinaryIO:
            time.sleep(0.005)
            return io.BytesIO(PNGS[i])

        return Item(str(i), opener)

    start = time.perf_counter()
    summary = run(
        [slow(i) for i in range(96)],
        Scorer(0.04),
        Memory(),
        reading=Reading(SIZE),
        batch_size=8,
        workers=1,
    )
    elapsed = time.perf_counter() - start
    # Each alone takes 0.48 s or, on a busy machine, more.
    assert summary.scoring_seconds > 0.45
    assert summary.decode_seconds > 0.45
    assert elapsed < 0.85 * (summary.scoring_seconds + summary.decode_seconds)


def test_as_many_calls_of_the_scorer_as_were_wanted() -> None:
    together, inside, most = threading.Barrier(2), threading.Semaphore(2), []

    class Meeting(Scorer):
        def __call__(self, images: torch.Tensor) -> Any:
            assert inside.acquire(blocking=False)
            # The second batch of a pair is faster, and comes later all the same.
            together.wait(timeout=10)
            time.sleep(0.02 * (len(most) % 2 == 0))
            most.append(1)
            inside.release()
            return super().__call__(images)

    sink = Memory()
    items = [item(i) for i in range(48)]
    summary = run(items, Meeting(), sink, reading=Reading(SIZE), batch_size=8, calls=2)
    assert [key for key, _, _ in sink.flat()] == [f"{i:05}" for i in range(48)]
    assert [score for _, score, _ in sink.flat()] == list(range(48))
    assert summary.calls == 2
    assert sink.state == "committed"


def test_an_error_of_a_later_call_waits_for_its_turn() -> None:
    first = threading.Event()

    class Failing(Scorer):
        def __call__(self, images: torch.Tensor) -> Any:
            if int(images[0, 0, 0, 0]) == 8:  # the second batch
                first.set()
                raise ArithmeticError
            assert first.wait(10)
            return super().__call__(images)

    sink = Memory()
    with pytest.raises(ScoringError, match="ArithmeticError"):
        run(
            [item(i) for i in range(24)],
            Failing(),
            sink,
            reading=Reading(SIZE),
            batch_size=8,
            calls=2,
        )
    assert [key for key, _, _ in sink.flat()] == [f"{i:05}" for i in range(8)]
    assert sink.state == "aborted"


def test_decode_threads_work_at_once() -> None:
    together = threading.Barrier(4)

    def meeting() -> BinaryIO:
        together.wait(timeout=10)  # passes only where four items are open at the same time
        return io.BytesIO(PNGS[0])

    items = [
        Item(str(i), meeting if i % 8 == 0 else lambda: io.BytesIO(PNGS[1])) for i in range(64)
    ]
    summary = run(items, Scorer(), Memory(), reading=Reading(SIZE), batch_size=32, workers=4)
    assert summary.failed == 0


def test_resized_images_are_counted() -> None:
    sizes = [SIZE, SIZE, 8, 2 * SIZE, 2 * SIZE + 1, 90]
    items = [Item(str(i), lambda s=s: io.BytesIO(png(7, s))) for i, s in enumerate(sizes)]
    summary = run(items, Scorer(), Memory(), reading=Reading(SIZE))
    assert (summary.resized, summary.reduced) == (4, 2)


@pytest.mark.parametrize("when", [0, 3])
def test_a_failing_scorer_aborts(tmp_path: Path, when: int) -> None:
    calls = 0

    def scorer(images: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls > when:
            raise RuntimeError("CUDA error:\n  out of luck")
        return Scorer()(images)

    path = tmp_path / "out.csv"
    path.write_text("old")
    sink = open_sink(str(path), ["score"], {})
    with pytest.raises(ScoringError, match="the scorer failed: RuntimeError: CUDA error: out of"):
        run((item(i) for i in range(1000)), scorer, sink, reading=Reading(SIZE), batch_size=4)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("score", [None, torch.zeros(1)])
def test_a_scorer_that_returns_too_little_aborts(score: Any) -> None:
    sink = Memory()
    with pytest.raises(ScoringError, match=r"asked for is None|wanted score of 3 images"):
        run(
            [item(i) for i in range(3)],
            lambda _: SimpleNamespace(score=score),
            sink,
            reading=Reading(SIZE),
        )
    assert sink.state == "aborted"


@pytest.mark.parametrize("where", ["source", "sink", "commit", "interrupt"])
def test_whatever_fails_the_sink_is_aborted(where: str) -> None:
    def source() -> Iterator[Item]:
        for i in range(100):
            if where == "source" and i == 50:
                raise OSError("the list is gone")
            if where == "interrupt" and i == 50:
                raise KeyboardInterrupt
            yield item(i)

    class Failing(Memory):
        def write(self, rows: Rows) -> None:
            if where == "sink":
                raise OSError(28, "No space left on device")

        def commit(self) -> None:
            if where == "commit":
                raise OSError(28, "No space left on device")
            super().commit()

    sink = Failing()
    with pytest.raises((OSError, KeyboardInterrupt)):
        run(source(), Scorer(), sink, reading=Reading(SIZE), batch_size=4)
    assert sink.state == "aborted"


@pytest.mark.parametrize("where", [0, 1, 50, 100])
def test_what_came_before_a_failing_source_is_written(where: int) -> None:
    def source() -> Iterator[Item]:
        for i in range(where):
            yield broken(i) if i % 7 == 3 else item(i)
        raise InputError("the share is gone")

    sink = Memory()
    with pytest.raises(InputError, match="the share is gone"):
        run(source(), Scorer(0.001), sink, reading=Reading(SIZE), batch_size=8, workers=2)
    assert sink.state == "aborted"
    assert [key for key, _, _ in sink.flat()] == [f"{i:05}" for i in range(where)]
    assert [error is None for _, _, error in sink.flat()] == [i % 7 != 3 for i in range(where)]


def test_a_source_that_failed_is_not_asked_again() -> None:
    class Flaky:
        calls = 0

        def __iter__(self) -> Flaky:
            return self

        def __next__(self) -> Item:
            self.calls += 1
            if self.calls == 11:
                raise OSError("gone for a moment")
            if self.calls > 100:
                raise StopIteration
            return item(self.calls)

    source, sink = Flaky(), Memory()
    with pytest.raises(OSError, match="gone for a moment"):
        run(source, Scorer(), sink, reading=Reading(SIZE))
    assert len(sink.flat()) == 10


def test_what_came_before_a_failing_batch_is_written() -> None:
    scorer = Scorer()

    def failing(images: torch.Tensor) -> Any:
        if len(scorer.batches) == 5:
            raise RuntimeError("out of luck")
        return scorer(images)

    sink = Memory()
    with pytest.raises(ScoringError):
        run((item(i) for i in range(100)), failing, sink, reading=Reading(SIZE), batch_size=4)
    assert len(sink.flat()) == 20
    assert sink.state == "aborted"


def test_seconds_of_the_stages() -> None:
    def slow(i: int) -> Item:
        def opener() -> BinaryIO:
            time.sleep(0.01)
            return io.BytesIO(PNGS[i])

        return Item(str(i), opener)

    def source() -> Iterator[Item]:
        for i in range(32):
            time.sleep(0.002)
            yield slow(i)

    class Slow(Memory):
        def write(self, rows: Rows) -> None:
            time.sleep(0.02)

        def commit(self) -> None:
            time.sleep(0.1)

    summary = run(source(), Scorer(0.03), Slow(), reading=Reading(SIZE), batch_size=8, workers=2)
    assert summary.workers == 2
    assert 0.06 < summary.source_seconds < summary.seconds
    assert 0.32 < summary.decode_seconds < 2 * summary.seconds  # of two threads
    assert 0.12 < summary.scoring_seconds < summary.seconds
    assert 0.18 < summary.write_seconds < summary.seconds


@pytest.mark.parametrize("by_turns", [False, True])
def test_no_thread_outlives_a_run(by_turns: bool) -> None:
    items = [item(i) for i in range(50)]
    run(items, Scorer(), Memory(), reading=Reading(SIZE), by_turns=by_turns)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        names = (
            "fiqa_fast-read",
            "fiqa_fast-decode",
            "fiqa_fast-score",
        )  # the engine's workers stay
        if not any(t.name.startswith(names) for t in threading.enumerate()):
            return
        time.sleep(0.01)
    pytest.fail("decode or scoring threads are still there")


def test_batches_do_not_depend_on_the_folder_being_read(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.png").write_bytes(PNGS[i])
    results = []
    for batch_size, workers in ((1, 1), (16, 4)):
        sink = Memory()
        (source,) = open_sources([tmp_path])
        run(source, Scorer(), sink, reading=Reading(SIZE), batch_size=batch_size, workers=workers)
        results.append(sink.flat())
    assert results[0] == results[1]


def test_statistics_keep_a_spread_sample_beyond_their_capacity() -> None:
    statistics = ScoreStatistics(capacity=100)
    statistics.add(range(100))
    assert statistics.exact
    assert statistics.median == 49.5
    for start in range(100, 10000, 100):
        statistics.add(range(start, start + 100))
    assert not statistics.exact
    assert statistics.count == 10000
    assert (statistics.minimum, statistics.maximum) == (0, 9999)
    assert abs(statistics.median - 5000) < 200
    assert np.isnan(ScoreStatistics().median)


def test_lines_of_progress() -> None:
    stream = io.StringIO()
    progress = LineProgress(10, stream, interval=0.0)
    time.sleep(0.01)
    progress.update(4)
    progress.tell("a.jpg: empty")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("4 of 10 images, ")
    assert first.endswith(" left")
    assert second == "a.jpg: empty"
    stream = io.StringIO()
    LineProgress(None, stream, interval=60).update(4)
    SilentProgress(stream).update(4)
    assert stream.getvalue() == ""
