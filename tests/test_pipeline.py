# SPDX-License-Identifier: Apache-2.0
"""The pipeline on streams that run late, early or moodily, and with each of its waits left out."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from accelerators import ORDERS, Deferred
from torch import Tensor

from fiqa_fast.engine import pipeline as module
from fiqa_fast.engine.accelerator import Accelerator, CaptureError, Host
from fiqa_fast.engine.eager import fill
from fiqa_fast.engine.pipeline import SLOTS, SLOTS_PER_CALL, Arrays, Pipeline
from fiqa_fast.quality.method import Values

SHAPE = (3, 3, 4, 5)  # groups of three
orders = pytest.mark.parametrize("order", ORDERS)


def fill_group(group: Tensor, images: Tensor) -> None:
    fill(group, images, torch.tensor(-1.0))


def whole(group: Tensor) -> Values:
    """Values of each image by itself, and one that shows whether the rest of a group is zeros."""
    return {
        "sum": group.flatten(1).sum(1),
        "map": group[:, 1] * 2,
        "row": group[:, 2, 0].contiguous(),
    }


def expected(images: Tensor) -> Arrays:
    if images.dtype == torch.uint8:
        images = (images.float() / 255 - 0.5) / 0.5
    return {name: value.numpy() for name, value in whole(images).items()}


def pictures(count: int, seed: int = 0, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE[1:]), dtype=torch.uint8, generator=generator)
    return images if dtype == torch.uint8 else (images.float() / 255 - 0.5) / 0.5


def same(got: Arrays, want: Arrays) -> bool:
    return got.keys() == want.keys() and all(
        got[name].dtype == np.float32 and np.array_equal(got[name], want[name]) for name in want
    )


def make(accelerator: Accelerator, kind: Any = Pipeline) -> Any:
    return kind(accelerator, SHAPE, fill_group, whole)


@pytest.fixture(autouse=True)
def _one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)


@orders
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_of_any_size(order: str | int, dtype: torch.dtype) -> None:
    pipeline = make(Deferred(order))
    for number, count in enumerate((0, 1, 2, 3, 4, 6, 8, 29, 1, 0, 3)):
        images = pictures(count, number, dtype)
        assert same(pipeline.run(images), expected(images))


@orders
def test_both_kinds_of_pixels_by_turns(order: str | int) -> None:
    pipeline = make(Deferred(order))
    for number, dtype in enumerate([torch.uint8, torch.float32, torch.float32, torch.uint8] * 3):
        images = pictures(5, number, dtype)
        assert same(pipeline.run(images), expected(images))


def test_any_memory_layout() -> None:
    pipeline = make(Deferred("late"))
    images = pictures(11)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert same(pipeline.run(strided), expected(images))
    assert same(pipeline.run(images.flip(0)[::2]), expected(images.flip(0)[::2]))
    assert same(pipeline.run(images[:1].expand(4, -1, -1, -1)), expected(images[[0] * 4]))


@orders
def test_several_callers_at_a_time(order: str | int) -> None:
    pipeline = make(Deferred(order))
    sizes = [17, 1, 4, 2, 30, 3] * 4

    def call(number: int) -> bool:
        images = pictures(sizes[number], number)
        return same(pipeline.run(images), expected(images))

    with ThreadPoolExecutor(7) as pool:
        assert all(pool.map(call, range(len(sizes)), timeout=60))
    assert free(pipeline) == SLOTS


def free(pipeline: Any) -> int:
    return int(pipeline._free.qsize())


def test_callers_hold_no_more_slots_than_two() -> None:
    """Of a long call, others need not wait for the end."""
    device = Deferred("late")
    pipeline = make(device)
    fewest: list[int] = []
    pipeline.replay = lambda replay=pipeline.replay: (fewest.append(free(pipeline)), replay())
    pipeline.run(pictures(40))
    assert min(fewest) == SLOTS - SLOTS_PER_CALL
    assert pipeline.computation.entries == pipeline.copies.entries
    assert not pipeline.copies.entries


def test_the_next_group_is_sent_while_one_is_computed() -> None:
    device = Deferred("late")
    pipeline = make(device)
    log: list[str] = []
    send, wait = pipeline._send, type(device.here()).wait

    def sent(images: Tensor, slot: Any) -> Any:
        log.append("send")
        return send(images, slot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_send", sent)
        patch.setattr(type(device.here()), "wait", lambda mark: (log.append("wait"), wait(mark)))
        pipeline.run(pictures(12))
    assert log == ["send", "send", *["wait", "send"] * 2, "wait", "wait"]


@orders
def test_results_are_the_callers_own(order: str | int) -> None:
    device = Deferred(order)
    pipeline = make(device)
    images = pictures(10)
    first = pipeline.run(images)
    kept = {name: array.copy() for name, array in first.items()}
    assert same(pipeline.run(pictures(10, 1)), expected(pictures(10, 1)))
    assert same(first, kept)
    device.poison()
    assert same(first, kept)
    for array in first.values():
        array[:] = 7  # and nothing of the pipeline's
    assert same(pipeline.run(images), kept)


@orders
def test_images_of_the_device_may_still_be_in_the_making(order: str | int) -> None:
    device = Deferred(order)
    pipeline = make(device)
    for number in range(4):
        final = pictures(8, number)
        images = torch.zeros_like(final)
        device.resident = [images]
        device.caller.run(lambda images=images, final=final: images.copy_(final))
        assert same(pipeline.run(images), expected(final))
    staged = sum(memory.dtype == torch.uint8 for memory in device.memory)
    assert staged == SLOTS + 1  # one of them page-locked, from the comparison when it was made


def test_memory_is_bounded_and_comes_with_its_kind_of_pixels() -> None:
    device = Deferred("early")
    pipeline = make(device)
    for _ in range(5):
        pipeline.run(pictures(40))
    groups = [memory.dtype for memory in device.memory if memory.shape == SHAPE]
    # The input; and of every slot one on either side.
    assert groups.count(torch.float32) == 1
    assert groups.count(torch.uint8) == 2 * SLOTS
    pipeline.run(pictures(40, dtype=torch.float32))
    groups = [memory.dtype for memory in device.memory if memory.shape == SHAPE]
    assert SLOTS_PER_CALL * 2 + 1 <= groups.count(torch.float32) <= 2 * SLOTS + 1


def test_the_rest_of_a_group_is_zeros() -> None:
    pipeline = make(Host())
    pipeline.run(pictures(3))
    pipeline.run(pictures(1, 5))
    assert pipeline.input[0].any()
    assert not pipeline.input[1:].any()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.zeros(2, 3, 5, 4, dtype=torch.uint8), r"uint8 or float32 \[B, 3, 4, 5\], got"),
        (torch.zeros(2, 1, 4, 5, dtype=torch.uint8), r"got torch.uint8 \[2, 1, 4, 5\]"),
        (torch.zeros(2, 3, 1, 1, dtype=torch.uint8), r"\[2, 3, 1, 1\]"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), r"\[3, 4, 5\]"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.float64), "float64"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int8), "int8"),
        (torch.zeros(0, 3, 9, 9, dtype=torch.uint8), r"\[0, 3, 9, 9\]"),
    ],
)
def test_other_images_are_refused(images: Tensor, text: str) -> None:
    pipeline = make(Deferred("late"))
    with pytest.raises(ValueError, match=text):
        pipeline.run(images)
    assert free(pipeline) == SLOTS
    assert same(pipeline.run(pictures(4)), expected(pictures(4)))


class TroubleError(Exception):
    pass


@orders
@pytest.mark.parametrize("where", ["page_locked", "fill", "replay", "_fetch", "record", "wait"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_after_an_error_it_goes_on(
    order: str | int, where: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, and whenever: the caller hears of it, and nothing is left on its way."""
    device = Deferred(order)
    pipeline = make(device)
    owner: Any = {
        "page_locked": module.Slot,
        "record": pipeline.copies,
        "wait": type(device.here()),
    }.get(where, pipeline)
    usual, calls = getattr(owner, where), itertools.count()

    def fails(*args: Any) -> Any:
        if next(calls) == after:
            raise TroubleError
        return usual(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fails)
        with pytest.raises(TroubleError):
            pipeline.run(pictures(17))
    assert free(pipeline) == SLOTS
    assert not any(stream.entries for stream in device.streams)
    for count in (17, 2):
        assert same(pipeline.run(pictures(count)), expected(pictures(count)))


def test_an_error_of_one_caller_is_not_the_others() -> None:
    device = Deferred("late")
    pipeline = make(device)
    fill_usual = pipeline.fill

    def fails(group: Tensor, images: Tensor) -> None:
        if images.dtype == torch.float32:
            raise TroubleError
        fill_usual(group, images)

    pipeline.fill = fails

    def call(number: int) -> bool:
        dtype = torch.float32 if number % 3 == 0 else torch.uint8
        try:
            got = pipeline.run(pictures(8, number, dtype))
        except TroubleError:
            return True
        return dtype == torch.uint8 and same(got, expected(pictures(8, number)))

    # Whoever brings a stream on meets its errors here; on a GPU, too, they come to whoever waits.
    for number in range(12):
        assert call(number)
    assert free(pipeline) == SLOTS


def test_what_looks_at_its_calls_is_refused() -> None:
    calls = itertools.count()

    def counted(group: Tensor) -> Values:
        return {**whole(group), "sum": whole(group)["sum"] + next(calls)}

    with pytest.raises(CaptureError, match="its CUDA graph computes another sum than"):
        Pipeline(Host(), SHAPE, fill_group, counted)


def test_what_cannot_be_captured_is_refused() -> None:
    class Unwilling(Host):
        def capture(self, compute: Callable[[], Values]) -> Any:
            raise CaptureError("it will not")

    with pytest.raises(CaptureError, match="it will not"):
        make(Unwilling())


# A line of the source, and what a mistake would have there. Each has to be seen by some order.
MISTAKES = {
    "no wait for the copy": ("self.computation.wait(self.copies.record())", "pass"),
    "the wait comes too late": (
        """            self.computation.wait(self.copies.record())
            self.computation.run(lambda: self._fill(staged))
""",
        """            self.computation.run(lambda: self._fill(staged))
            self.computation.wait(self.copies.record())
""",
    ),
    "the event comes before the copy": (
        """            self.copies.run(lambda: staged.copy_(source, non_blocking=True))
            self.computation.wait(self.copies.record())
""",
        """            self.computation.wait(self.copies.record())
            self.copies.run(lambda: staged.copy_(source, non_blocking=True))
""",
    ),
    "no wait for the results": ("            trip.done.wait()\n", ""),
    "results are fetched before the replay": (
        """            self.computation.run(self.replay)
            self.computation.run(lambda: self._fetch(slot))
""",
        """            self.computation.run(lambda: self._fetch(slot))
            self.computation.run(self.replay)
""",
    ),
    "the replay is on the copies' stream": (
        "self.computation.run(self.replay)",
        "self.copies.run(self.replay)",
    ),
    "results are fetched on the copies' stream": (
        "self.computation.run(lambda: self._fetch(slot))",
        "self.copies.run(lambda: self._fetch(slot))",
    ),
    "done is before the results": (
        """            self.computation.run(lambda: self._fetch(slot))
            return self.computation.record()
""",
        """            done = self.computation.record()
            self.computation.run(lambda: self._fetch(slot))
            return done
""",
    ),
    "done is the copy": ("return self.computation.record()", "return self.copies.record()"),
    "a slot is free while it is on its way": (
        "trips.append(Trip(slot, start))",
        "trips.append(Trip(slot, start)); self._free.put(slot)",
    ),
    "one slot for all": (
        "self._free.put(Slot(accelerator, self.copies, self.shape, self.results))",
        "self._free.put(self.__dict__.setdefault('slot', Slot(accelerator, self.copies, "
        "self.shape, self.results)))",
    ),
    "the caller's images are not waited for": (
        "            if ready is not None:\n                self.copies.wait(ready)\n",
        "",
    ),
    "results are the slot's own": (
        "                np.copyto(part, trip.slot.results[name].numpy()[: len(part)])\n",
        "                if len(array) <= self.shape[0]:\n"
        "                    results[name] = trip.slot.results[name].numpy()[: len(part)]\n"
        "                else:\n"
        "                    np.copyto(part, trip.slot.results[name].numpy()[: len(part)])\n",
    ),
    "an error leaves a slot taken": ("self._free.put(trip.slot)", "pass"),
    "an error leaves work on its way": ("self.accelerator.settle()  # what", "pass  # what"),
    "whoever holds a slot waits for another": ("block=held == 0", "block=True"),
}


def changed(line: str, mistake: str) -> Any:
    source = inspect.getsource(module)
    assert source.count(line) == 1, line
    copy = types.ModuleType("fiqa_fast.engine.changed")
    copy.__package__ = "fiqa_fast.engine"
    with pytest.MonkeyPatch.context() as patch:  # where dataclasses look for their module
        patch.setitem(sys.modules, copy.__name__, copy)
        exec(compile(source.replace(line, mistake), copy.__name__, "exec"), copy.__dict__)
    return copy


def goes_wrong(module: Any, order: str | int) -> bool:
    """All of what the tests above look at, in small."""
    device = Deferred(order)
    try:
        pipeline = make(device, module.Pipeline)
    except CaptureError:  # it compares itself when it is made
        return True
    kept = []
    for number, count in enumerate((7, 1, 12)):
        images = pictures(count, number)
        kept.append((pipeline.run(images), expected(images)))
    images = torch.zeros_like(pictures(8))
    device.resident = [images]
    device.caller.run(lambda: images.copy_(pictures(8)))
    kept.append((pipeline.run(images), expected(pictures(8))))
    wrong = not all(itertools.starmap(same, kept))
    usual, calls = pipeline.fill, itertools.count()

    def fails(*args: Any) -> None:
        if next(calls) == 1:
            raise TroubleError
        usual(*args)

    pipeline.fill = fails
    with pytest.raises(TroubleError):
        pipeline.run(pictures(17))
    pipeline.fill = usual
    return (
        wrong
        or free(pipeline) != SLOTS
        or any(stream.entries for stream in device.streams)
        or gets_stuck(pipeline)
    )


def gets_stuck(pipeline: Any) -> bool:
    """Callers that each hold a slot and find no second, because others do."""
    held = threading.Barrier(SLOTS)
    send = pipeline._send

    def sends_together(images: Tensor, slot: Any) -> Any:
        done = send(images, slot)
        with contextlib.suppress(threading.BrokenBarrierError):
            held.wait(0.5)
        return done

    pipeline._send = sends_together
    threads = [threading.Thread(target=pipeline.run, args=(pictures(6, n),)) for n in range(SLOTS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    stuck = any(thread.is_alive() for thread in threads)
    while any(thread.is_alive() for thread in threads):  # lets them go
        pipeline._free.put(
            module.Slot(pipeline.accelerator, pipeline.copies, SHAPE, pipeline.results)
        )
        time.sleep(0.05)
    return stuck


@orders
def test_nothing_goes_wrong(order: str | int) -> None:
    assert not goes_wrong(module, order)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_seen(mistake: str) -> None:
    copy = changed(*MISTAKES[mistake])
    assert any(goes_wrong(copy, order) for order in ORDERS)
