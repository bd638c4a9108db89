# SPDX-License-Identifier: Apache-2.0
"""From finished rows to the output in its place, at whatever moment the process is killed.

All files are written and synchronised in a folder that then gets the name ``ready``. From there
on nothing is computed any more: each file moves to its place, and whoever comes next goes on
with that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from fiqa_fast.gallery.atomic import synchronise
from fiqa_fast.gallery.sinks import Family, Layout
from fiqa_fast.gallery.store.lock import LOCK_NAME
from fiqa_fast.gallery.store.parts import Part, rows_in_order
from fiqa_fast.gallery.store.record import RECORD_NAME, Record

__all__ = ["clear", "is_ready", "move_into_place", "prepare"]

_READY = "ready"


def prepare(folder: str, layout: Layout, record: Record, parts: Sequence[Part]) -> None:
    """Write the whole output into ``folder``/ready: the rows in place, then the new ones."""
    making = os.path.join(folder, _READY + ".tmp")
    shutil.rmtree(making, ignore_errors=True)
    os.mkdir(making)
    files: list[BinaryIO] = []

    def create(path: str) -> BinaryIO:
        files.append(open(os.path.join(making, os.path.basename(path)), "wb"))  # noqa: SIM115
        if os.path.exists(path):
            shutil.copymode(path, files[-1].name)
        return files[-1]

    try:
        family = Family(layout, create, record.description(), recorded=True)
        if record.extends:
            family.copy(failed_too=not record.retries)
        for rows in rows_in_order(parts):
            family.write(rows)
        family.finish()
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        _close(files)
        synchronise(making)
        os.rename(making, os.path.join(folder, _READY))
    except BaseException:
        _close(files)
        shutil.rmtree(making, ignore_errors=True)  # a full disk needs the room
        raise
    synchronise(folder)


def _close(files: Sequence[BinaryIO]) -> None:
    for file in files:
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            file.close()


def is_ready(folder: str) -> bool:
    """Whether the whole output is in ``folder``, or was moved from there."""
    return os.path.isdir(os.path.join(folder, _READY))


def move_into_place(folder: str, table: str) -> bool:
    """Move what is ready to where ``table`` belongs, itself last; return whether that was needed.

    The files are those of the run that made them ready, whatever is wanted now.
    """
    if not is_ready(folder):
        return False
    ready = os.path.join(folder, _READY)
    target, last = os.path.split(table)
    for name in sorted(os.listdir(ready), key=lambda name: name == last):
        os.replace(os.path.join(ready, name), os.path.join(target, name))
    synchronise(target)
    return True


def clear(folder: str) -> None:
    """Remove everything but the lock.

    What says of what settings the parts are, and that they are in their place already, goes last.
    """
    last = (RECORD_NAME, _READY)
    for name in sorted(os.listdir(folder), key=lambda name: (name in last, name == _READY)):
        path = os.path.join(folder, name)
        if name == LOCK_NAME:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
