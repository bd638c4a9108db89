# SPDX-License-Identifier: Apache-2.0
"""Outputs that survive: stopped at every step and resumed, they end as if nothing had been."""

from __future__ import annotations

import builtins
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from galleries import KeySource, open_store, score_all

KEYS = [f"{i:03}.jpg" for i in range(43)]
SUFFIXES = ("parquet", "csv", "jsonl", "txt")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def undisturbed(
    folder: Path, name: str, keys: list[str] = KEYS, **options: Any
) -> dict[str, bytes]:
    folder.mkdir()
    score_all(open_store(folder / name, **options), [KeySource(keys)])
    return contents(folder)


class Killed(BaseException):
    """What ends a run as a kill does: nothing is cleaned up behind it."""


class Killer:
    """Ends the process that is simulated at the n-th change of the file system."""

    CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "open")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        self.dead = False
        for name in self.CHANGES:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        monkeypatch.setattr(builtins, "open", self._wrapped(builtins.open))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Killed
            self.left -= 1
            if self.left < 0:
                self.dead = True
                raise Killed
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("grows", [False, True])
def test_killed_at_every_change_of_the_file_system(
    tmp_path: Path, suffix: str, grows: bool
) -> None:
    """One run after the other dies one step later; the last state of each is gone on with."""
    options = {"outputs": ("score", "embedding")} if suffix in ("csv", "parquet") else {}
    name = f"out.{suffix}"
    start = tmp_path / "start"
    if grows:
        undisturbed(start, name, KEYS[:20], **options)
        expected = tmp_path / "expected"
        shutil.copytree(start, expected)
        score_all(open_store(expected / name, **options), [KeySource(KEYS)])
        wanted = contents(expected)
    else:
        start.mkdir()
        wanted = undisturbed(tmp_path / "expected", name, **options)
    for step in range(1000):
        folder = tmp_path / f"run{step}"
        shutil.copytree(start, folder)
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, step)
            store = None
            try:
                store = open_store(folder / name, **options)
                score_all(store, [KeySource(KEYS)], batch=10)
            except Killed:
                pass
        if store is not None:
            store._lock.release()  # as the system does
        if not killer.dead:
            break
        if store is None:
            release_locks(folder)
        score_all(open_store(folder / name, **options), [KeySource(KEYS)], batch=7)
        assert contents(folder) == wanted, step
        shutil.rmtree(folder)
    assert 30 < step < 1000


def release_locks(folder: Path) -> None:
    """Close what a simulated death left open."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(str(folder)):
            os.close(int(fd))
