# SPDX-License-Identifier: Apache-2.0
"""Outputs in trouble: what somebody edited, moved or put beside them, and disks that are full."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import face, one_line_error
from containers import write_tar
from galleries import KeySource, hash_of, open_store, rows_of, score_all

from fiqa_fast.gallery import OutputError
from fiqa_fast.gallery.shares import numbered
from fiqa_fast.gallery.store import state_folder
from fiqa_fast.gallery.store.done import Digests

KEYS = [f"{i:03}.jpg" for i in range(23)]
MORE = [*KEYS, "x.jpg", "y.jpg"]
VECTORS = {"outputs": ("score", "embedding"), "vectors": "npy"}


def extend_and_stop(path: Path, **options: Any) -> None:
    """Finish a table, and stop the run that adds to it."""
    score_all(open_store(path, **options), [KeySource(KEYS)])
    store = open_store(path, **options)
    items = store.pending(numbered([KeySource(MORE)]))
    store.write(rows_of([next(items).key], bool(options)))
    store.abort()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_table_that_grows_has_vanished_meanwhile(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    extend_and_stop(path)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"has vanished while .*put it back.*--overwrite"):
        open_store(path)
    (tmp_path / "elsewhere").rename(path)
    score_all(open_store(path), [KeySource(MORE)])
    path.unlink()
    score_all(open_store(path), [KeySource(MORE)])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_table_that_grows_is_another_one_meanwhile(tmp_path: Path, suffix: str) -> None:
    path, other = tmp_path / f"out.{suffix}", tmp_path / f"other.{suffix}"
    extend_and_stop(path)
    score_all(open_store(other, settings={"exit": 4}), [KeySource(KEYS)])
    for file in tmp_path.glob("other*"):
        file.replace(str(file).replace("other", "out"))
    with pytest.raises(OutputError, match=r"holds rows of other settings .exit 8, not 4"):
        open_store(path)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_somebody_s_array_is_not_overwritten_unasked(tmp_path: Path, suffix: str) -> None:
    path, array = tmp_path / f"out.{suffix}", tmp_path / "out.embedding.npy"
    np.save(array, np.arange(3))
    before = array.read_bytes()
    with pytest.raises(OutputError, match=r"out.embedding.npy: this file exists, .*--overwrite"):
        open_store(path, **VECTORS)
    assert array.read_bytes() == before
    assert os.listdir(tmp_path) == [array.name]
    score_all(open_store(path, overwrite=True, **VECTORS), [KeySource(KEYS)])
    assert len(np.load(array)) == len(KEYS)


def test_a_table_that_has_lost_rows_has_lost_its_array(tmp_path: Path) -> None:
    """Row i of the array would be of another image."""
    path = tmp_path / "out.csv"
    score_all(open_store(path, **VECTORS), [KeySource(KEYS)])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(OutputError, match=r"wanted floats of 22 rows, got float32 \[23, 4\]"):
        score_all(open_store(path, **VECTORS), [KeySource(MORE)])


def test_columns_that_somebody_added_or_took_are_named(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    score_all(open_store(path), [KeySource(KEYS)])
    table = pq.read_table(path)
    for edited in (
        table.append_column("label", pa.array(range(len(KEYS)))),
        table.drop_columns(["error"]),
        table.drop_columns(["score"]),
    ):
        pq.write_table(edited, path)
        with pytest.raises(OutputError, match=r"out.parquet: not a table that can go on"):
            open_store(path)
        assert os.listdir(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize("record", [{"settings": 3}, {"settings": {}, "builds": 3}])
def test_a_record_of_another_shape_is_damaged(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    store.add(rows_of(KEYS[:3]), [0, 1, 2])
    store.abort()
    (Path(state_folder(str(path))) / "record.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match="record of an unfinished run is damaged"):
        open_store(path)


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["fsync", "mkdir"])
def test_a_disk_that_is_full_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OutputError, match=r"out.parquet.*No space left"):
            open_store(tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_at_the_end_is_not_kept_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    for _ in store.pending(numbered([KeySource(KEYS)])):
        pass
    store.write(rows_of(KEYS))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="all rows are kept"):
            store.commit()
    assert not [name for name in os.listdir(state_folder(str(path))) if "ready" in name]
    score_all(open_store(path), [KeySource(KEYS)])
    assert pq.read_table(path).num_rows == len(KEYS)


def test_what_is_ready_is_kept_where_it_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table without new rows, of which an array is in place already."""
    path = tmp_path / "out.csv"
    score_all(open_store(path, **VECTORS), [KeySource(KEYS)])
    good = [key for key in KEYS if hash_of(key) % 7]

    def finish() -> None:
        store = open_store(path, retry_errors=True, **VECTORS)
        assert list(store.pending(numbered([KeySource(good)]))) == []
        store.commit()

    replace = os.replace

    def fail(source: str, target: str) -> None:
        if target == str(path):
            raise OSError(errno.EROFS, "Read-only file system")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="Read-only"):
            finish()
        with pytest.raises((OutputError, OSError), match="Read-only"):
            open_store(path, **VECTORS)
    open_store(path, **VECTORS).abort()
    assert len(path.read_text().splitlines()) == 1 + len(good)
    assert len(np.load(tmp_path / "out.embedding.npy")) == len(good)


def test_a_folder_that_cannot_be_removed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a file that is removed while it is open; and the next run may be there already."""
    path = tmp_path / "out.parquet"
    store = open_store(path)
    unlink = os.unlink

    def keep_open_ones(name: str, *args: Any, **options: Any) -> None:
        unlink(name, *args, **options)
        if name.endswith("lock"):
            Path(name).with_name("lock").touch()

    monkeypatch.setattr(os, "unlink", keep_open_ones)
    score_all(store, [KeySource(KEYS)])
    assert pq.read_table(path).num_rows == len(KEYS)


def test_a_stopped_run_without_rows_binds_nobody(tmp_path: Path) -> None:
    """Killed before its first row, it leaves its record behind."""
    path = tmp_path / "out.parquet"
    store = open_store(path, settings={"exit": 4})
    kept = shutil.copytree(state_folder(str(path)), tmp_path / "kept")
    store.abort()
    os.rename(kept, state_folder(str(path)))
    score_all(open_store(path), [KeySource(KEYS)])
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_failed_rows_are_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    bad = sum(hash_of(key) % 7 == 0 for key in KEYS)
    assert bad
    store = open_store(path)
    assert store.failed == 0
    store.add(rows_of(KEYS), range(len(KEYS)))
    store.abort()
    store = open_store(path)
    assert store.failed == bad
    store.commit()
    store = open_store(path)
    assert store.failed == bad
    store.abort()
    store = open_store(path, retry_errors=True)
    assert store.failed == 0
    store.abort()


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    """Whoever may write beside the output may not have another file emptied."""
    path, precious = tmp_path / "out.parquet", tmp_path / "precious"
    precious.write_text("kept")
    folder = Path(state_folder(str(path)))
    folder.mkdir()
    (folder / "lock").symlink_to(precious)
    with pytest.raises(OutputError, match=r"out.parquet"):
        open_store(path)
    assert precious.read_text() == "kept"


def test_strict_counts_what_earlier_runs_wrote(cli: Any, tmp_path: Path) -> None:
    face(tmp_path / "crops" / "good.png", 1)
    (tmp_path / "crops" / "bad.png").write_bytes(b"")
    args = ("score", tmp_path / "crops", "-o", tmp_path / "out.csv", "--exit", 1)
    assert cli(*args).status == 0
    for _ in range(2):
        outcome = cli(*args, "--strict")
        assert outcome.status == 1
        assert "2 rows are there already, 1 of them without a score" in outcome.err
    face(tmp_path / "crops" / "bad.png", 2)
    assert cli(*args, "--strict", "--retry-errors").status == 0


def test_a_run_that_ends_before_its_first_image_leaves_no_trace(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list turns out to be none when it is counted, or cannot be shared out."""
    face(tmp_path / "good.png", 1)
    (tmp_path / "list.txt").write_bytes("good.png".encode("utf-16"))
    message = one_line_error(cli("score", tmp_path / "list.txt", "-o", tmp_path / "out.csv"))
    assert "wanted a list in UTF-8" in message
    archive = io.BytesIO(write_tar(tmp_path / "a.tar", {"a.png": b"x"}).read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(archive))
    message = one_line_error(cli("score", "-", "-o", tmp_path / "out.csv", "--processes", 2))
    assert "standard input cannot be shared out" in message
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "good.png", "list.txt"]


def test_a_part_without_rows_has_all_columns(tmp_path: Path) -> None:
    """Readers of a folder take the columns of its first part."""
    options = {"outputs": ("score", "embedding"), "dtype": "float16"}
    first, second = tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"
    score_all(open_store(first, **options), [KeySource([])])
    score_all(open_store(second, **options), [KeySource(KEYS)])
    table = pq.read_table(tmp_path)
    assert table.column_names == ["path", "score", "error", "embedding"]
    assert table.column("embedding").equals(pq.read_table(second).column("embedding"))
    score_all(open_store(first, **options), [KeySource(KEYS)])
    assert first.read_bytes() == second.read_bytes()


def test_a_build_that_wrote_no_row_is_not_told(tmp_path: Path) -> None:
    path, other = tmp_path / "out.parquet", {"fiqa_fast": "1", "torch": "1", "processor": "1"}
    score_all(open_store(path), [KeySource(KEYS)])
    store = open_store(path, build=other)
    score_all(store, [KeySource(KEYS)])
    assert len(store.record.builds) == 1
    store = open_store(path, build=other)
    score_all(store, [KeySource(MORE)])
    assert store.record.builds[1:] == [other]


def test_digests_take_no_more_than_they_say() -> None:
    tracemalloc.start()
    try:
        Digests(f"{i}.jpg" for i in range(100_000))
        assert tracemalloc.get_traced_memory()[1] < 24 * 100_000
    finally:
        tracemalloc.stop()


def test_names_of_vanished_images_are_one_line(cli: Any, tmp_path: Path) -> None:
    for name in ("good.png", "new\nline.png"):
        face(tmp_path / "crops" / name, 1)
    args = ("score", tmp_path / "crops", "-o", tmp_path / "out.csv", "--exit", 1)
    assert cli(*args).status == 0
    (tmp_path / "crops" / "new\nline.png").unlink()
    assert "not have any more (new\\nline.png); they are kept" in cli(*args).err


def test_the_folder_of_parts_is_on_disk_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synchronised.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    open_store(tmp_path / "out.parquet").abort()
    assert synchronised[0] == str(tmp_path)
