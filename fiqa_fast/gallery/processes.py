# SPDX-License-Identifier: Apache-2.0
"""Worker processes: each scores a share of the gallery on a device of its own.

A worker is the same command once more, told in its environment which worker it is. It walks the
sources for itself, stores its rows in parts of the same unfinished output, and reports to the
parent in lines of JSON. It holds the output's lock too: an output whose parent was killed belongs
to its workers until the last of them has noticed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from fiqa_fast.gallery.errors import ScoringError

__all__ = ["Worker", "watch"]

_VARIABLE = "FIQA_FAST_WORKER"
_PATIENCE = 30.0  # seconds that workers have to store their rows when the run is stopped


@dataclass(frozen=True)
class Worker:
    """Which worker a process is, and how it reaches its parent."""

    index: int
    count: int
    start: int  # of the run, see Store.start
    reports: int  # descriptor of a pipe
    plan: str  # fingerprint of the containers, where they are shared out whole; else empty

    @staticmethod
    def here() -> Worker | None:
        """Return what this process is told to be; None for one that a user started."""
        text = os.environ.pop(_VARIABLE, None)
        return None if text is None else Worker(**json.loads(text))

    def report(self, **facts: Any) -> None:
        """Tell the parent; ends this process where there is none any more."""
        line = memoryview((json.dumps(facts) + "\n").encode())
        try:
            while line:
                line = line[os.write(self.reports, line) :]
        except BrokenPipeError:
            raise SystemExit(128 + signal.SIGTERM) from None


def watch(
    args: Sequence[str],
    count: int,
    start: int,
    plan: str,
    lock: int,
    told: Callable[[int, dict[str, Any]], None],
) -> None:
    """Run ``fiqa-fast`` with ``args`` in ``count`` workers; ``told`` hears each report.

    ``start`` and ``plan`` are what each :class:`Worker` is told.

    Raises :class:`ScoringError` where one of them fails, once the others have ended.
    """
    workers: list[subprocess.Popen[bytes]] = []
    with selectors.DefaultSelector() as selector:
        try:
            for index in range(count):
                reports, writing = os.pipe()
                worker = Worker(index, count, start, writing, plan)
                workers.append(_begin(args, worker, lock))
                selector.register(reports, selectors.EVENT_READ, (index, _Lines(reports)))
            while selector.get_map():
                for key, _ in selector.select():
                    index, lines = key.data
                    for report in lines.read():
                        told(index, report)
                    if lines.ended:
                        selector.unregister(key.fd)
            states = [worker.wait() for worker in workers]
        except BaseException:
            _stop(workers)
            raise
        finally:
            for key in list(selector.get_map().values()):
                os.close(key.fd)
    failed = [index for index, state in enumerate(states) if state]
    if failed:
        how = "; ".join(f"worker {index} {_how(states[index])}" for index in failed)
        raise ScoringError(f"{how}; the rows of all workers are kept: run the same command again")


def _begin(args: Sequence[str], worker: Worker, lock: int) -> subprocess.Popen[bytes]:
    # Ctrl-C reaches the whole group; the parent passes it on, once. The same places for modules,
    # in the same order: a worker must not be of another version.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"import sys; sys.path[:] = {sys.path!r}; "
        "from fiqa_fast.cli import main; main()"
    )
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code, *args],
            env={**os.environ, _VARIABLE: json.dumps(asdict(worker))},
            stdin=subprocess.DEVNULL,
            pass_fds=(lock, worker.reports),
        )
    finally:
        os.close(worker.reports)


class _Lines:
    """Reports as they come through a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.ended = False

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the reports that are whole."""
        data = os.read(self._fd, 2**20)
        if not data:
            self.ended = True
            os.close(self._fd)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _how(state: int) -> str:
    return f"was ended by signal {-state}" if state < 0 else f"ended with status {state}"


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let workers store their rows, and end those that take too long."""
    for worker in workers:
        with suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
