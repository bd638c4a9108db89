# SPDX-License-Identifier: Apache-2.0
"""Resident memory of each engine, measured in a process that runs it alone.

What an engine holds when it is prepared (its own weights among it) and what it takes at its peak,
above the loaded model; and, from two batch sizes, what a further image in flight adds.
"""

from __future__ import annotations

import ctypes
import gc
import json
from pathlib import Path
from typing import Any

import torch

from .children import call, command
from .entries import Absent, Entry
from .peers.everyone import entries_of
from .peers.exports import Exports
from .subject import Subject

__all__ = ["child", "measured"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CALLS = 3


def measured(subject: Subject, entry: Entry, batch_size: int) -> dict[str, Any]:
    """Megabytes (10^6 bytes) of an entry.

    Raises :class:`Absent` where it cannot be measured.
    """
    if not _CLEAR.exists():
        raise Absent("resident memory is read from /proc, which this system lacks")
    if batch_size % entry.streams:
        raise Absent(f"{entry.streams} streams do not share a batch of {batch_size} evenly")
    many = _in_child(subject, entry, batch_size)
    found = {"batch_size": batch_size, "prepared_mb": many["prepared"], "peak_mb": many["peak"]}
    if batch_size > entry.streams:
        few = _in_child(subject, entry, entry.streams)
        more = (many["peak"] - few["peak"]) / (batch_size - entry.streams)
        found["mb_per_further_image"] = more
    return found


def _in_child(subject: Subject, entry: Entry, batch_size: int) -> dict[str, float]:
    spec = {
        "subject": subject.spec(),
        "key": entry.key,
        "dtype": entry.dtype,
        "batch_size": batch_size,
    }
    try:
        said = call(command("from fiqa_fast.bench.memory import child; child()"), json.dumps(spec))
    except RuntimeError as error:
        raise Absent(error) from error
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def child() -> None:
    """Measure the entry that standard input describes, and print what was found."""
    spec = json.loads(input())
    subject = Subject.of(**spec["subject"])
    torch.set_num_threads(subject.threads)
    exports = Exports(subject)
    try:
        everyone = entries_of(subject, spec["dtype"], exports, subject.scorer, peers=True)
        (entry,) = (entry for entry in everyone if entry.key == spec["key"])
        print(json.dumps(_measured_here(entry, spec["batch_size"], subject.model.config.img_size)))
    finally:
        exports.close()


def _measured_here(entry: Entry, batch_size: int, size: int) -> dict[str, float]:
    pixels = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    _give_back()
    before = _resident("VmRSS")
    ready = entry.prepare(batch_size)
    _give_back()
    prepared = _resident("VmRSS")
    _CLEAR.write_text("5")  # the peak begins here
    for _ in range(_CALLS):
        ready.run(pixels)
    peak = _resident("VmHWM")
    return {"prepared": (prepared - before) / 1e6, "peak": (peak - before) / 1e6}


def _give_back() -> None:
    """What loading and preparing needed for a while is nobody's any more."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:  # bytes
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise Absent(f"{_STATUS} has no {name}")
