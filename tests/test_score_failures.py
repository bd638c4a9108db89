# SPDX-License-Identifier: Apache-2.0
"""Machines that fail under ``fiqa-fast score``: one line says so, and finished rows are kept.

Whatever happened, the same command ends with the table of an undisturbed run once it is mended.
"""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Outcome, table
from containers import write_rec, write_tar
from galleries import SETTINGS, KeySource, open_store, rows_of, score_all
from PIL import Image

import fiqa_fast.gallery.decoding as decoding
from fiqa_fast.gallery import dataset, turns
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.store import Store, state_folder

KEYS = [f"{i:03}.jpg" for i in range(60)]
EVERY_BATCH = ("--save-every", 0, "--batch-size", 4, "--workers", 1, "--exit", 1)


@pytest.fixture(autouse=True)
def one_batch_per_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens between batches is what these tests are about."""
    monkeypatch.setattr(turns, "_MOST", 1)


@pytest.fixture
def images() -> dict[str, bytes]:
    made = {}
    for i in range(24):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((112, 112)).save(buffer, "JPEG")
        made[f"{i + 1:02}.jpg"] = buffer.getvalue()
    return made


@pytest.fixture
def scored(cli: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Scores what there is undisturbed and returns the table."""

    def score(*inputs: Path) -> dict[str, Any]:
        path = tmp_path / "undisturbed.parquet"
        outcome = cli("score", *inputs, "-o", path, *EVERY_BATCH, "--overwrite")
        assert outcome.status == 0, outcome.err
        return table(path)

    return score


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which no file grows further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """A disk that is full once so many files were synchronised."""
    fsync, left = os.fsync, [after]

    def synchronise(fd: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synchronise)
        yield


@contextmanager
def after_batches(
    monkeypatch: pytest.MonkeyPatch, count: int, happens: Callable[[], Any]
) -> Iterator[None]:
    """Make something happen while a run is under way."""
    write, left = Store.write, [count]

    def count_down(self: Store, rows: Any) -> None:
        write(self, rows)
        left[0] -= 1
        if left[0] == 0:
            happens()

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", count_down)
        # Nothing is read ahead of what happens.
        patch.setattr(decoding, "CHUNK", 1)
        yield


def error_line(outcome: Outcome) -> str:
    """The error, which is one line; a line on what was kept may stand before it."""
    lines = outcome.err.splitlines()
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert len(lines) <= 3, outcome.err
    assert lines[-1].startswith("fiqa-fast: error: "), outcome.err
    return lines[-1]


def refusal(path: Path, keys: list[str], **options: Any) -> str:
    """What a run over ``keys`` says that cannot be finished."""
    store = None
    try:
        store = open_store(path, **options)
        score_all(store, [KeySource(keys)], batch=20)
    except OutputError as error:
        if store is not None:
            store.abort()
        return str(error)
    pytest.fail("nothing was refused")


def rows_kept(path: Path) -> int:
    parts = Path(state_folder(str(path))).glob("part-*.parquet")
    return sum(pq.read_metadata(part).num_rows for part in parts)


# Disks


@pytest.mark.parametrize("after", range(7))
def test_disk_full(
    cli: Any,
    tmp_path: Path,
    images: dict[str, bytes],
    scored: Any,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    rec = write_rec(tmp_path / "g.rec", images)
    expected = scored(rec)
    path = tmp_path / "out.parquet"
    command = ("score", rec, "-o", path, *EVERY_BATCH)
    with full_disk(monkeypatch, 2 * after):  # a file and its folder
        line = error_line(cli(*command))
    assert "No space left on device" in line
    assert str(path.parent) in line
    assert not path.exists()
    assert rows_kept(path) == 4 * max(0, after - 1)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "tmp" in name]
    assert cli(*command).status == 0
    assert table(path) == expected
    assert not Path(state_folder(str(path))).exists()


def test_a_table_that_does_not_fit(tmp_path: Path) -> None:
    options = {"outputs": ("score", "embedding")}
    path = tmp_path / "out.csv"
    with files_of_at_most(6000):
        text = refusal(path, KEYS * 9, **options)
    assert f"{path}: File too large; all rows are kept in" in text
    assert sorted(os.listdir(tmp_path)) == [".out.csv.unfinished"]
    assert rows_kept(path) == 540
    # What was made of the table takes no room while it is waited for.
    assert not [name for name in os.listdir(state_folder(str(path))) if "ready" in name]
    score_all(open_store(path, **options), [KeySource(KEYS * 9)])
    score_all(open_store(tmp_path / "b.csv", **options), [KeySource(KEYS * 9)])
    assert path.read_bytes() == (tmp_path / "b.csv").read_bytes()


def fill(ballast: Path, room: int) -> None:
    """Leave so many bytes free on a disk."""
    ballast.unlink(missing_ok=True)
    with open(ballast, "wb") as file:
        file.write(bytes(shutil.disk_usage(ballast.parent).free - room))


def test_a_real_disk_that_is_full(tmp_path: Path, images: dict[str, bytes]) -> None:
    """Too small even for the start, then for the rows, then large enough."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs leave to mount a file system")
    try:
        options = {"outputs": ("score", "embedding")}
        path, ballast = disk / "out.csv", disk / "ballast"
        for room in (0, 4, 8, 16, 32):
            fill(ballast, room * 1024)
            text = refusal(path, KEYS * 9, **options)
            assert "No space left on device" in text, room
            assert str(disk) in text
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        score_all(open_store(path, **options), [KeySource(KEYS * 9)])
        score_all(open_store(tmp_path / "b.csv", **options), [KeySource(KEYS * 9)])
        assert path.read_bytes() == (tmp_path / "b.csv").read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_target_that_becomes_read_only(
    cli: Any, tmp_path: Path, images: dict[str, bytes], scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rec = write_rec(tmp_path / "g.rec", images)
    expected = scored(rec)
    path = tmp_path / "out.parquet"
    command = ("score", rec, "-o", path, *EVERY_BATCH)
    replace = os.replace

    def refuse(source: str, target: str) -> None:
        if target == str(path):
            raise OSError(errno.EROFS, "Read-only file system", source, None, target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        for _ in range(2):  # the second finds the table made, and nowhere to put it
            line = error_line(cli(*command))
            assert f"{path}: Read-only file system" in line
            assert "rows are kept" in line
    assert cli(*command).status == 0
    assert table(path) == expected
    assert sorted(os.listdir(tmp_path)) == ["g.idx", "g.rec", path.name, "undisturbed.parquet"]


# Sources


def test_a_folder_that_vanishes(
    cli: Any, tmp_path: Path, images: dict[str, bytes], scored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    expected = scored(folder)
    path = tmp_path / "out.parquet"
    command = ("score", folder, "-o", path, *EVERY_BATCH)
    with after_batches(monkeypatch, 2, lambda: folder.rename(away)):
        line = error_line(cli(*command))
    assert "has vanished while it was read" in line
    assert not path.exists()
    assert rows_kept(path) >= 8
    assert "has vanished" in line or "no such file" in line
    # Not there, and then an empty folder where a disk was.
    assert cli(*command).status == 2
    folder.mkdir()
    assert cli(*command).status == 2
    folder.rmdir()
    assert rows_kept(path) >= 8
    away.rename(folder)
    assert cli(*command).status == 0
    assert table(path) == expected


@pytest.mark.parametrize("index", [True, False])
def test_records_that_are_cut_off_while_they_are_read(
    cli: Any,
    tmp_path: Path,
    images: dict[str, bytes],
    scored: Any,
    monkeypatch: pytest.MonkeyPatch,
    index: bool,
) -> None:
    rec = write_rec(tmp_path / "g.rec", images, index)
    expected = scored(rec)
    whole = rec.read_bytes()
    path = tmp_path / "out.parquet"
    command = ("score", rec, "-o", path, *EVERY_BATCH)
    with after_batches(monkeypatch, 2, lambda: os.truncate(rec, len(whole) // 2)):
        line = error_line(cli(*command))
    assert "was cut off, replaced or emptied while it was read" in line
    assert rows_kept(path) >= 8
    rec.write_bytes(whole)
    assert cli(*command).status == 0
    assert table(path) == expected


def test_one_bad_shard(cli: Any, tmp_path: Path, images: dict[str, bytes], scored: Any) -> None:
    names = list(images)
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(3):
        some = {name: images[name] for name in names[8 * i : 8 * i + 8]}
        write_tar(shards / f"{i}.tar", some)
    expected = scored(shards / "*.tar")
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[: len(whole) // 2])
    path = tmp_path / "out.parquet"
    command = ("score", shards / "*.tar", "-o", path, *EVERY_BATCH)
    outcome = cli(*command)
    assert outcome.status == 1
    assert outcome.err.count("not read to its end") == 1
    assert f"not read to its end: {shards}/1.tar: " in outcome.err
    rows = table(path)
    good = {key: row for key, row in rows.items() if row[1] is None}
    assert good.items() <= expected.items()
    assert len(good) >= 17
    assert len(rows) == len(good) + 1  # one row says that the rest is missing
    (shards / "1.tar").write_bytes(whole)
    outcome = cli(*command, "--retry-errors")
    assert outcome.status == 0, outcome.err
    assert table(path) == expected


# The folder of what is unfinished


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a run leaves behind that is stopped: four parts of ten rows."""
    store = open_store(tmp_path / "out.parquet")
    for first in range(0, 40, 10):
        keys = KEYS[first : first + 10]
        for _ in store.pending(enumerate(KeySource(keys), first)):
            pass
        store.write(rows_of(keys))
    store.abort()
    return Path(state_folder(str(tmp_path / "out.parquet")))


def resumed(left: Path) -> None:
    """Check that the same run ends with the undisturbed table."""
    folder = left.parent
    score_all(open_store(folder / "out.parquet"), [KeySource(KEYS)])
    score_all(open_store(folder / "b.parquet"), [KeySource(KEYS)])
    assert (folder / "out.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    assert sorted(os.listdir(folder)) == ["b.parquet", "out.parquet"]


@pytest.mark.parametrize("what", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_part(left: Path, what: str) -> None:
    part = sorted(left.glob("part-*.parquet"))[1]
    data = part.read_bytes()
    if what == "foreign":
        pq.write_table(pq.read_table(part).drop_columns(["position"]), part)
    elif what == "flipped":
        place = data.index(KEYS[10].encode()) + 2 if KEYS[10].encode() in data else 40
        part.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    else:
        part.write_bytes(data[: len(data) // 2] if what == "cut" else b"")
    text = refusal(left.parent / "out.parquet", KEYS)
    assert f"{part}: damaged finished rows" in text
    part.unlink()
    resumed(left)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", '{"settings": 7}', '{"settings": {}, "builds": 3}',
        '{"settings": {}, "more": 1}', "[" * 100_000, '{"settings": {}, "extends": "x"}', "\x00",
    ],
)  # fmt: skip
def test_a_damaged_record(left: Path, text: str) -> None:
    record = left / "record.json"
    whole = record.read_bytes()
    record.write_text(text)
    with pytest.raises(OutputError, match=r"record\.json: .* is damaged .*--overwrite"):
        open_store(left.parent / "out.parquet")
    record.write_bytes(whole)
    resumed(left)


def test_parts_without_their_record_are_nobodys(left: Path) -> None:
    """Whose settings they are of is not known."""
    (left / "record.json").unlink()
    with pytest.raises(OutputError, match="finished rows, but no record"):
        open_store(left.parent / "out.parquet", settings={"exit": 4})
    assert len(list(left.glob("part-*.parquet"))) == 4
    score_all(
        open_store(left.parent / "out.parquet", settings={"exit": 4}, overwrite=True),
        [KeySource(KEYS)],
    )
    assert sorted(os.listdir(left.parent)) == ["out.parquet"]


def test_killed_while_it_starts_anew(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of the old settings gets into the new table."""
    path = left.parent / "out.parquet"
    unlink, listdir = os.unlink, os.listdir
    for step in range(24):
        folder = left.parent / f"try{step}"
        shutil.copytree(left, folder / left.name)
        steps = iter(range(step % 12))

        def stop(target: Any, steps: Any = steps, **options: Any) -> None:
            if next(steps, None) is None:
                raise SystemExit
            unlink(target, **options)

        def names(folder: Any = ".", backwards: bool = step >= 12) -> list[str]:
            return sorted(listdir(folder), reverse=backwards)

        with monkeypatch.context() as patch, suppress(SystemExit):
            patch.setattr(os, "unlink", stop)
            patch.setattr(os, "listdir", names)
            open_store(folder / path.name, settings={"exit": 4}, overwrite=True)._lock.release()
        try:
            store = open_store(folder / path.name, settings={"exit": 4})
        except OutputError:
            continue  # refused, as rows of other settings are there
        assert store.kept == 0, step
        store.abort()


def test_unknown_files_in_the_folder(left: Path) -> None:
    (left / "notes.txt").write_text("mine")
    (left / "sub").mkdir()
    (left / "link").symlink_to(left.parent, target_is_directory=True)
    (left / "part-1.parquet").write_text("no part by its name")
    resumed(left)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    Path(state_folder(str(path))).write_text("")
    with pytest.raises(OutputError, match=r"\.out\.parquet\.unfinished: "):
        open_store(path)


def test_the_next_run_takes_the_folder_while_the_last_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"
    store = open_store(path)
    remove, later = os.rmdir, []

    def meanwhile(folder: str, **options: Any) -> None:
        if folder == store.folder and not later:
            later.append(open_store(path))
        remove(folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", meanwhile)
        score_all(store, [KeySource(KEYS)])
    assert pq.read_metadata(path).num_rows == len(KEYS)
    score_all(later[0], [KeySource(KEYS)])
    assert sorted(os.listdir(tmp_path)) == ["out.parquet"]


def test_a_table_that_changes_under_what_is_added_to_it(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    score_all(open_store(path), [KeySource(KEYS[:20])])
    store = open_store(path)
    for _ in store.pending(enumerate(KeySource(KEYS))):
        pass
    store.write(rows_of(KEYS[20:]))
    store.abort()
    path.rename(tmp_path / "away.parquet")
    assert f"{path}: has vanished while new rows for it were unfinished" in refusal(path, KEYS)
    score_all(open_store(tmp_path / "b.parquet", settings={"exit": 4}), [KeySource(KEYS[:20])])
    shutil.copy(tmp_path / "b.parquet", path)
    assert f"{path}: holds rows of other settings (exit 8, not 4)" in refusal(path, KEYS)
    (tmp_path / "away.parquet").replace(path)
    score_all(open_store(path), [KeySource(KEYS)])
    assert pq.read_table(path)["path"].to_pylist() == KEYS


def test_what_a_killed_process_left_of_a_plan_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*paths: str) -> None:
        raise KeyboardInterrupt

    def nothing(path: str) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", die)
        patch.setattr(os, "unlink", nothing)
        with pytest.raises(KeyboardInterrupt):
            dataset.join(str(tmp_path), 0, 2, SETTINGS, [])
    assert len(os.listdir(tmp_path)) == 1
    for share in (0, 1):
        dataset.join(str(tmp_path), share, 2, SETTINGS, [])
    assert os.listdir(tmp_path) == ["_gallery.json"]


def test_a_plan_that_is_swept_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes at once: the second is faster than the first, the third sweeps."""
    link = os.link

    def meanwhile(source: str, target: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            for share in (1, 2):
                dataset.join(str(tmp_path), share, 3, SETTINGS, [])
        link(source, target)

    monkeypatch.setattr(os, "link", meanwhile)
    assert dataset.join(str(tmp_path), 0, 3, SETTINGS, []).index == 0
    assert os.listdir(tmp_path) == ["_gallery.json"]


def test_a_signal_after_the_end_says_nothing(run_python: Any) -> None:
    code = """
import atexit, os, signal
from fiqa_fast.cli import main
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
main(["--version"])
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_a_bad_shard_among_shares_moves_no_other(
    cli: Any, tmp_path: Path, images: dict[str, bytes], scored: Any
) -> None:
    names = list(images)
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(4):
        write_tar(shards / f"{i}.tar", {name: images[name] for name in names[6 * i : 6 * i + 6]})
    expected = scored(shards / "*.tar")
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(b"not yet copied")
    folder = tmp_path / "out"

    def share(index: int, *options: str) -> Outcome:
        command = ("score", shards / "*.tar", "-o", f"{folder}/", "--shard", f"{index}/4")
        return cli(*command, *EVERY_BATCH, *options)

    assert [share(i).status for i in (0, 1)] == [0, 1]
    (shards / "1.tar").write_bytes(whole)
    assert [share(i).status for i in (2, 3)] == [0, 0]
    outcome = share(1, "--retry-errors")
    assert outcome.status == 0, outcome.err
    rows = {}
    for part in sorted(folder.glob("*.parquet")):
        assert pq.read_metadata(part).num_rows == 6
        rows.update(table(part))
    assert rows == expected
