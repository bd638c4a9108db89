# SPDX-License-Identifier: Apache-2.0
"""CPU worker threads that each compute alone, with torch's own threading off.

torch splits one product over its threads, and how it does so changes the last bits with the
number of threads. Here a thread runs a group of images by itself, so their arithmetic is one fixed
sequence of single-threaded calls; the cores are filled with different groups. A process that keeps
its torch work to these threads also never starts OpenMP, whose threads do not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_size = 0
# In a worker: the number of threads that are wanted where its work was handed over.
_asked = threading.local()


def run_all(task: Callable[[int], None], count: int) -> None:
    """Call ``task(0) .. task(count - 1)`` on ``torch.get_num_threads()`` single-threaded workers.

    Returns when all are done. The first exception stops the rest and is raised here; so does an
    interrupt of the caller.
    """
    workers = min(_threads(), count)
    if workers == 0:
        return
    drain, stop = _draining(task, count)
    futures = _submit(drain, workers)
    try:
        for future in futures:
            future.result()
    finally:
        stop.set()
        wait(futures)


def run_shared(task: Callable[[int], object], count: int) -> None:
    """As :func:`run_all`, from within a worker: that one calls ``task`` itself, and those do that
    happen to be idle. Nobody is waited for that has not begun."""
    drain, stop = _draining(task, count)
    helpers = _submit(drain, max(0, min(_threads(), count) - 1))
    try:
        drain()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    finally:
        stop.set()
        wait([helper for helper in helpers if not helper.cancel()])


def _draining(
    task: Callable[[int], object], count: int
) -> tuple[Callable[[], None], threading.Event]:
    """What calls ``task`` with numbers that nobody else took, and what stops it."""
    numbers = iter(range(count))
    take = threading.Lock()
    stop = threading.Event()

    def drain() -> None:
        try:
            while not stop.is_set():
                with take:
                    number = next(numbers, None)
                if number is None:
                    return
                task(number)
        except BaseException:
            stop.set()
            raise

    return drain, stop


def run_alone(work: Callable[[], T]) -> T:
    """Call ``work`` on one single-threaded worker, and return what it returns.

    Not from within a worker: all of them could be waiting.
    """
    return begin_alone(work).result()


def begin_alone(work: Callable[[], T]) -> Future[T]:
    """As :func:`run_alone`, without waiting yet."""
    return _submit(work, 1)[0]


def help_with(work: Callable[[], object], helpers: int) -> None:
    """Let up to ``helpers`` idle workers call ``work`` as well, sooner or later; nobody waits.

    For work that its caller completes alone where nobody comes, and that is then nothing to do.
    """
    if helpers > 0:
        _submit(work, helpers)


def _threads() -> int:
    """``torch.get_num_threads()`` as the thread has it that is not a worker."""
    return getattr(_asked, "threads", None) or torch.get_num_threads()


def _submit(work: Callable[[], T], times: int) -> list[Future[T]]:
    global _pool, _size
    threads = _threads()

    def told() -> T:
        _asked.threads = threads
        return work()

    with _lock:  # held while submitting, so that no pool is put away in between
        wanted = max(times, threads)
        if _pool is None or _size < wanted:
            outgrown, _pool, _size = _pool, _start(wanted), wanted
            if outgrown is not None:
                outgrown.shutdown(wait=False)  # its running work finishes
        return [_pool.submit(told) for _ in range(times)]


def _start(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads all exist and run torch single-threaded."""
    asked = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fiqa_fast-engine")
    gate = threading.Barrier(workers)

    def settle() -> None:
        # torch gives a thread the process-wide number on first use, and that must not come later
        # than the number of its own: so ask once before setting it.
        torch.get_num_threads()
        torch.set_num_threads(1)
        gate.wait()  # every thread takes exactly one of these

    try:
        wait([pool.submit(settle) for _ in range(workers)])
    except BaseException:  # a thread could not start: let the others go
        gate.abort()
        raise
    # Set in a thread, the number also becomes the default of threads yet to start: put that back.
    torch.set_num_threads(asked)
    return pool


def _forget() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _pool, _size, _lock
    _pool, _size, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
