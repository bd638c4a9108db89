# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score`` on several devices: where each worker computes, and what they come to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fiqa_fast.gallery.errors import InputError, OutputError

if TYPE_CHECKING:
    from fiqa_fast.cli.output import Destination
    from fiqa_fast.gallery.processes import Worker
    from fiqa_fast.gallery.progress import Progress
    from fiqa_fast.gallery.runner import Summary
    from fiqa_fast.gallery.sources import Source

__all__ = ["ending", "place", "spread"]


def place(
    options: dict[str, Any],
    threads: int | None,
    workers: int | None,
    processes: int,
    worker: Worker | None,
) -> tuple[int | None, int | None]:
    """Give this process its device, in ``options``, and return its threads and decode threads.

    A worker, or a rank of torchrun, has a GPU of its own; on a CPU, workers share the threads.
    """
    import torch

    from fiqa_fast.gallery.runner import default_workers
    from fiqa_fast.gallery.shares import from_environment

    ranks = from_environment()
    number = 0 if ranks is None else ranks[2]
    if worker is not None:
        number = number * worker.count + worker.index
    if options["device"] in ("auto", "cuda") and torch.cuda.is_available():
        if worker is not None or ranks is not None:
            options["device"] = f"cuda:{number % torch.cuda.device_count()}"
    elif worker is not None and threads is None:
        threads = max(1, torch.get_num_threads() // worker.count)
    if worker is not None and workers is None:
        workers = max(1, default_workers() // worker.count)
    return threads, workers


def ending(summary: Summary, damaged: Sequence[str], passed: int) -> dict[str, Any]:
    """Return a worker's last report."""
    names = ("resized", "reduced", "workers", "calls", "source_seconds", "decode_seconds")
    return {
        "summary": {
            name: getattr(summary, name) for name in (*names, "scoring_seconds", "write_seconds")
        },
        "damaged": list(damaged),
        "passed": passed,
    }


def spread(
    args: Sequence[str],
    processes: int,
    destination: Destination,
    sources: Sequence[Source],
    progress: Progress,
) -> tuple[Summary, list[str], int]:
    """Score with worker processes; return what they did, what is damaged and what was passed over.

    Raises :class:`OutputError` and :class:`InputError` for what cannot be shared out, and
    :class:`ScoringError` where a worker fails.
    """
    from fiqa_fast.gallery.processes import watch
    from fiqa_fast.gallery.runner import Summary
    from fiqa_fast.gallery.shares import containers, fingerprint, numbered
    from fiqa_fast.gallery.sources.tar import StandardInput

    store = destination.store
    if store is None:
        raise OutputError("--processes needs a table to write: -o FILE or -o DIR/")
    if any(isinstance(source, StandardInput) for source in sources):
        raise InputError("--processes: standard input cannot be shared out; store it in a file")
    summary = Summary(workers=0, calls=0)
    damaged: dict[str, None] = {}
    passed = [0] * processes
    start = time.perf_counter()

    def told(index: int, report: dict[str, Any]) -> None:
        if "scores" in report:
            images = len(report["scores"]) + report["failed"]
            summary.images += images
            summary.failed += report["failed"]
            summary.statistics.add(report["scores"])
            progress.update(images)
            return
        for name, value in report["summary"].items():
            setattr(summary, name, getattr(summary, name) + value)
        damaged.update(dict.fromkeys(report["damaged"]))
        passed[index] = report["passed"]

    try:
        # Whole containers, where each worker has several, are read once in all.
        names = containers(sources) if destination.share.count == 1 else []
        plan = fingerprint(names) if len(names) >= 4 * processes else ""
        watch(args, processes, store.start, plan, store.lock_fd, told)
        if store.kept:  # no worker sees all of the gallery, so none knows what has vanished
            for _ in store.done.leave_out(numbered(sources, destination.share)):
                pass
        store.commit()
    except BaseException:
        store.abort()
        raise
    finally:
        progress.close()
    summary.seconds = time.perf_counter() - start
    return summary, list(damaged), max(passed)
