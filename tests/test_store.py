# SPDX-License-Identifier: Apache-2.0
"""Outputs that survive: stopped at every step and resumed, they end as if nothing had been."""

from __future__ import annotations

import builtins
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from galleries import KeySource, hash_of, open_store, rows_of, score_all, value
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fiqa_fast.gallery import InputError, OutputError
from fiqa_fast.gallery.shares import numbered
from fiqa_fast.gallery.store import state_folder
from fiqa_fast.gallery.store.done import Digests

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


def test_a_gallery_that_has_grown_is_scored_where_it_is_new(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    score_all(open_store(path), [KeySource(KEYS[:10] + KEYS[20:])])
    store = open_store(path)
    assert store.kept == 33
    grown = ["0.jpg", *KEYS[5:], "z.jpg"]
    score_all(store, [KeySource(grown)])
    keys = pq.read_table(path)["path"].to_pylist()
    new = ["0.jpg", *KEYS[10:20], "z.jpg"]
    assert keys == KEYS[:10] + KEYS[20:] + new
    assert store.writer.stored == len(new)
    assert store.done.vanished == 5
    assert store.done.examples == KEYS[:3]
    again = open_store(path)
    before = os.stat(path).st_mtime_ns
    score_all(again, [KeySource(grown[:-2])])  # only fewer
    assert again.done.vanished == 7
    assert os.stat(path).st_mtime_ns == before
    assert os.listdir(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_finished_table_is_left_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    score_all(open_store(path), [KeySource(KEYS)])
    before = contents(tmp_path)
    store = open_store(path)
    assert store.kept == len(KEYS)
    score_all(store, [KeySource(KEYS)])
    assert store.writer.stored == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_and_can_overwrite(
    tmp_path: Path, suffix: str, finished: bool
) -> None:
    path = tmp_path / f"out.{suffix}"
    store = open_store(path)
    items = store.pending(numbered([KeySource(KEYS)]))
    store.write(rows_of([next(items).key for _ in range(9)]))
    if finished:
        items.close()
        store.abort()
        store = open_store(path)
        score_all(store, [KeySource(KEYS)])
    else:
        store.abort()
    other = {"exit": 4, "fusion": "depth"}
    with pytest.raises(OutputError, match=r"exit 4, not 8; fusion depth, not null.*--overwrite"):
        open_store(path, settings=other)
    assert state_exists(path) is not finished
    store = open_store(path, settings=other, overwrite=True)
    assert store.kept == 0
    # Until it is complete, what was there is there.
    assert path.exists() is finished
    score_all(store, [KeySource(KEYS[:4])])
    with pytest.raises(OutputError, match=r"exit 8, not 4"):
        open_store(path)
    store = open_store(path, settings=other)
    assert store.kept == 4
    store.abort()


def state_exists(path: Path) -> bool:
    return os.path.isdir(state_folder(str(path)))


def test_an_overwriting_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("somebody's")
    with pytest.raises(OutputError, match="nothing says how it was made"):
        open_store(path)
    for options in ({"overwrite": True}, {}, {"overwrite": True}):
        store = open_store(path, **options)
        items = store.pending(numbered([KeySource(KEYS)]))
        store.write(rows_of([next(items).key for _ in range(9)]))
        assert path.read_text() == "somebody's"
        store.abort()
    store = open_store(path)
    assert store.kept == 27
    score_all(store, [KeySource(KEYS)])
    assert contents(tmp_path) == undisturbed(tmp_path / "expected", "out.csv")


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    store.add(rows_of(KEYS[:3]), [0, 1, 2])
    store.abort()
    path.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match="has appeared while its rows were unfinished"):
        open_store(path)
    path.unlink()
    score_all(open_store(path), [KeySource(KEYS)])


def test_the_second_run_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    first = open_store(path)
    for options in ({}, {"overwrite": True}, {"settings": {"exit": 4}}):
        with pytest.raises(OutputError, match=f"another run is writing it .process {os.getpid()}"):
            open_store(path, **options)
    score_all(first, [KeySource(KEYS)])
    assert contents(tmp_path) == undisturbed(tmp_path / "expected", "out.parquet")
    score_all(open_store(path), [KeySource(KEYS)])


def test_a_run_without_a_row_leaves_no_trace(tmp_path: Path) -> None:
    open_store(tmp_path / "out.parquet").abort()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_rows_are_scored_again_on_demand(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    bad = [key for key in KEYS if hash_of(key) % 7 == 0]
    assert len(bad) > 2
    score_all(open_store(path), [KeySource(KEYS)])
    store = open_store(path, retry_errors=True)
    assert store.kept == len(KEYS) - len(bad)
    pending = [item.key for item in store.pending(numbered([KeySource(KEYS[:-1])]))]
    assert pending == [key for key in bad if key != KEYS[-1]]
    good = rows_of(pending)
    good.errors = [None] * len(pending)
    store.write(good)
    store.abort()  # and the retry is gone on with, without asking for it again
    store = open_store(path)
    assert list(store.pending(numbered([KeySource(KEYS)]))) == []
    store.commit()
    again = open_store(path, retry_errors=True)
    assert again.kept == len(KEYS)
    assert list(again.pending(numbered([KeySource(KEYS)]))) == []
    again.abort()


def test_failed_rows_of_an_unfinished_run_are_scored_again_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    items = store.pending(numbered([KeySource(KEYS)]))
    for _ in range(8):
        store.write(rows_of([next(items).key for _ in range(5)]))
    store.abort()
    bad = [key for key in KEYS[:40] if hash_of(key) % 7 == 0]
    store = open_store(path, retry_errors=True)
    pending = [item.key for item in store.pending(numbered([KeySource(KEYS)]))]
    assert pending == [*bad, *KEYS[40:]]
    good = rows_of(pending)
    good.errors = [None] * len(pending)
    store.write(good)
    store.commit()
    table = pq.read_table(path)
    assert table["path"].to_pylist() == KEYS
    assert table["error"].null_count == len(KEYS)


@given(st.randoms(use_true_random=False), st.integers(1, 4))
@hypothesis_settings(max_examples=12, deadline=None)
def test_rows_of_many_starts_and_workers_end_in_the_gallery_s_order(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random, workers: int
) -> None:
    """Whoever wrote which rows, in which parts, after however many deaths."""
    folder = tmp_path_factory.mktemp("store")
    path = folder / "out.parquet"
    places = list(range(len(KEYS)))
    while places:
        store = open_store(path, save_seconds=1e9)
        for worker in range(workers):
            store.writer._worker = worker
            mine = [p for p in places if p % workers == worker][: rng.randrange(1, 9)]
            while mine:
                size = rng.randrange(1, 4)
                store.add(rows_of([KEYS[p] for p in mine[:size]]), mine[:size])
                store.writer.flush()
                places = [p for p in places if p not in mine[:size]]
                mine = mine[size:]
        store.abort()
    store = open_store(path)
    assert list(store.pending(numbered([KeySource(KEYS)]))) == []
    store.commit()
    assert pq.read_table(path)["path"].to_pylist() == KEYS


def test_rows_may_come_in_any_order(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out.parquet", save_seconds=1e9)
    order = random.Random(0).sample(range(len(KEYS)), len(KEYS))
    store.add(rows_of([KEYS[p] for p in order]), order)
    store.commit()
    assert contents(tmp_path) == undisturbed(tmp_path / "expected", "out.parquet")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    items = store.pending(numbered([KeySource(KEYS)]))
    for _ in range(4):
        store.write(rows_of([next(items).key for _ in range(5)]))
    store.abort()
    part = sorted(Path(state_folder(str(path))).glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(OutputError, match=f"{part.name}: damaged finished rows .*remove this file"):
        open_store(path)
    part.unlink()
    score_all(open_store(path), [KeySource(KEYS)])
    assert contents(tmp_path) == undisturbed(tmp_path / "expected", "out.parquet")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"settings": 3, "x": 1}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    store.add(rows_of(KEYS[:3]), [0, 1, 2])
    store.abort()
    (Path(state_folder(str(path))) / "record.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"record of an unfinished run is damaged.*--overwrite"):
        open_store(path)
    score_all(open_store(path, overwrite=True), [KeySource(KEYS)])
    assert contents(tmp_path) == undisturbed(tmp_path / "expected", "out.parquet")


def test_a_guard_keeps_failed_rows_out(tmp_path: Path) -> None:
    """Where the disk is gone, images are not bad."""

    def guard() -> None:
        raise InputError("crops: has vanished")

    path = tmp_path / "out.parquet"
    store = open_store(path, guard=guard)
    items = store.pending(numbered([KeySource(KEYS)]))
    good = rows_of([next(items).key for _ in range(5)])
    good.errors = [None] * 5
    store.write(good)
    failed = rows_of([next(items).key for _ in range(5)])
    failed.errors = ["no such file"] * 5
    with pytest.raises(InputError):
        store.write(failed)
    store.abort()
    store = open_store(path)
    assert store.kept == 5
    store.abort()


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    options = {"outputs": ("score", "embedding"), "dtype": "float16"}
    path = tmp_path / "out.parquet"
    score_all(open_store(path, **options), [KeySource(KEYS)])
    table = pq.read_table(path)
    assert str(table.schema.field("embedding").type) == "list<element: halffloat>"
    for key, error, got in zip(
        *(table[n].to_pylist() for n in ("path", "error", "embedding")), strict=True
    ):
        wanted = np.float16(value(key) * np.arange(4, dtype=np.float32))
        assert (got is None) if error else np.array_equal(np.float16(got), wanted)
    rows = rows_of(["new.jpg"], vectors=True)
    rows.errors = [None]
    rows.columns["embedding"][0, 2] = 70000
    store = open_store(path, **options)
    with pytest.raises(OutputError, match=r"beyond float16's.*--vectors-dtype float32"):
        store.add(rows, [99])
    store.abort()


def test_arrays_beside_follow_their_table(tmp_path: Path) -> None:
    options = {"outputs": ("score", "embedding"), "vectors": "npy"}
    path = tmp_path / "out.parquet"
    for count in (10, 30, 43):
        score_all(open_store(path, **options), [KeySource(KEYS[:count])])
        array = np.load(tmp_path / "out.embedding.npy")
        rows = rows_of(KEYS[:count], vectors=True)
        wanted = np.where(rows.failed[:, None], np.nan, rows.columns["embedding"])
        assert array.dtype == np.float32
        assert np.array_equal(array, wanted, equal_nan=True)
        assert pq.read_table(path).column_names == ["path", "score", "error"]
    (tmp_path / "out.embedding.npy").unlink()
    with pytest.raises(OutputError, match=r"out.embedding.npy: not the array.*No such file"):
        score_all(open_store(path, **options), [KeySource([*KEYS, "new.jpg"])])


NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@given(st.lists(NAMES | st.sampled_from(["a\nb", "a\\nb", "a\\\\nb", '"', 'a,"b', "\r", " ", ""])))
@hypothesis_settings(max_examples=25, deadline=None)
def test_every_table_gives_its_keys_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    keys = list(dict.fromkeys(names))
    for suffix in SUFFIXES:
        path = tmp_path_factory.mktemp("keys") / f"out.{suffix}"
        score_all(open_store(path), [KeySource(keys)])
        store = open_store(path)
        assert [item.key for item in store.pending(numbered([KeySource([*keys, "new"])]))] == (
            [] if "new" in keys else ["new"]
        )
        assert store.done.vanished == 0
        store.abort()


# Sets of keys


@given(st.lists(st.text(max_size=5)), st.lists(st.text(max_size=5)))
def test_digests_are_a_set(keys: list[str], probes: list[str]) -> None:
    digests = Digests(dict.fromkeys(keys))
    for probe in probes:
        assert digests.meet(probe) == (probe in keys)
    assert digests.unmet == len(set(keys) - set(probes))
    for key in keys:
        assert digests.met(key) == (key in probes)


def test_many_keys_are_all_found() -> None:
    keys = [f"{i}.jpg" for i in range(5000)]
    digests = Digests(keys)
    assert not any(digests.meet(f"{i}.png") for i in range(5000))
    assert digests.unmet == 5000
    assert all(digests.meet(key) for key in keys)
    assert digests.unmet == 0
