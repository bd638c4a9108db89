# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile containers: rows with errors or one-line refusals, and nothing worse."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import re
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from containers import MAGIC, WRITERS, packed, record, write_saved

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery import InputError, open_sources
from fiqa_fast.gallery.sources import MAX_IMAGE_BYTES, damages
from fiqa_fast.gallery.sources.container import RandomFile

JPEG = b"\xff\xd8\xff"
IMAGES = {f"p{i // 4}/{i:02}.jpg": JPEG + bytes([i]) * (i * 277 % 2500) for i in range(10)}
ROUNDS = int(os.environ.get("FIQA_FAST_FUZZ_ROUNDS", "60"))  # of each container
EXTREMES = [0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 50))):
        place = rng.randrange(max(1, len(changed)))
        # Lengths and offsets stand at the ends of many formats.
        place = rng.choice((place, place, place % 64, len(changed) - 1 - place % 200))
        place = max(0, place)
        kind = rng.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[place : place + 1] = bytes(
                [changed[place] ^ 1 << rng.randrange(8)] if changed[place:] else []
            )
        elif kind == 2:
            size = rng.choice((2, 4, 8))
            value = rng.choice(EXTREMES) % 256**size
            changed[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[place:]
        elif kind == 4:
            del changed[place : place + rng.choice((1, 4, 512))]
        else:
            start = rng.randrange(max(1, len(changed)))
            changed[place:place] = changed[start : start + rng.choice((4, 64, 512))]
    return bytes(changed)


def one_line(error: Exception) -> None:
    assert str(error).isprintable(), str(error)


def survive(path: Path) -> tuple[int, int]:
    """Read all that can be read; return the numbers of images and of errors."""
    try:
        (source,) = open_sources([path])
    except InputError as error:
        one_line(error)
        return 0, 1
    good = bad = 0
    keys = set()
    assert source.count() is None or source.count() >= 0
    for item in source:
        assert item.key not in keys
        keys.add(item.key)
        item.key.encode()
        try:
            with item.open() as file:
                file.read()
            good += 1
        except (ImageError, OSError) as error:
            one_line(error)
            bad += 1
    return good, bad


@pytest.mark.parametrize("name", [*WRITERS, "x.idx", "state.json", "data-00001-of-00002.arrow"])
def test_mutations(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.idx":
        path = WRITERS["x.rec"](tmp_path / "x.rec", IMAGES)
        target = path.with_suffix(".idx")
    elif name not in WRITERS:
        path = write_saved(tmp_path / "saved", IMAGES)
        target = path / name
    else:
        target = path = WRITERS[name](path, IMAGES)
    data = target.read_bytes()
    rng = random.Random(name)
    survived = 0
    for number in range(ROUNDS):
        case = mutated(data, rng)
        target.write_bytes(case)
        start = time.thread_time()
        tracemalloc.start()
        try:
            good, bad = survive(path)
            _, peak = tracemalloc.get_traced_memory()
        except Exception as error:
            raise AssertionError(f"round {number} of {name}: {error!r}") from error
        finally:
            tracemalloc.stop()
        assert peak < 80 * 2**20, f"round {number}"
        assert time.thread_time() - start < 30, f"round {number}"
        assert good + bad < 20 * len(IMAGES) + len(data) // 8
        survived += good > 0
    assert survived or name == "state.json"  # most damage costs a part, not all


@pytest.mark.parametrize("name", [*WRITERS])
def test_every_truncation(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, IMAGES)
    data = path.read_bytes()
    for end in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:end])
        good, bad = survive(path)
        assert bad or good == len(IMAGES)  # the padding alone is missing
        assert good <= len(IMAGES)


@pytest.mark.parametrize("left", [61_000, 100_000, 150_000])
@pytest.mark.parametrize("name", [*WRITERS])
def test_files_that_shrink_while_they_are_read(tmp_path: Path, name: str, left: int) -> None:
    images = {f"{i:05}.jpg": os.urandom(3000) for i in range(300)}
    path = WRITERS[name](tmp_path / name, images)
    (source,) = open_sources([path])
    errors = 0
    for number, item in enumerate(source):
        if number == 20:
            os.truncate(path, left)
        try:
            item.open().close()
        except (ImageError, OSError):
            errors += 1
    assert errors


# Each hostile on purpose


def tar_member(name: str, size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def rows_of(path: Path) -> dict[str, bytes | str]:
    rows: dict[str, bytes | str] = {}
    tracemalloc.start()
    (source,) = open_sources([path])
    for item in source:
        try:
            with item.open() as file:
                rows[item.key] = file.read()
        except (ImageError, OSError) as error:
            rows[item.key] = str(error)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MAX_IMAGE_BYTES
    return rows


TOO_LONG = "wanted an image of at most 32 MiB, got 1073741824 bytes"
GIB = 2**30


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.jpg", "w") as file:
            for _ in range(100):
                file.write(bytes(2**20))
        archive.writestr("b.jpg", JPEG)
    too_long = "wanted an image of at most 32 MiB, got 104857600 bytes"
    assert rows_of(path) == {"a.jpg": too_long, "b.jpg": JPEG}
    data = path.read_bytes()
    directory = data.index(b"PK\1\2")
    small = (1000).to_bytes(4, "little")  # the directory lies about the unpacked length
    path.write_bytes(data[: directory + 24] + small + data[directory + 28 :])
    wrong = "damaged: the member's bytes are not those that its checksum is of"
    assert rows_of(path) == {"a.jpg": wrong, "b.jpg": JPEG}


def test_a_gzip_bomb_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(tar_member("a.jpg", GIB // 4))
        for _ in range(256):
            file.write(bytes(2**20))
        file.write(tar_member("b.jpg", 3) + JPEG.ljust(512, b"\0") + bytes(1024))
    too_long = f"wanted an image of at most 32 MiB, got {GIB // 4} bytes"
    assert rows_of(path) == {"a.jpg": too_long, "b.jpg": JPEG}


def test_endless_zeros_after_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_member("b.jpg", 3) + JPEG.ljust(512, b"\0") + bytes(1024))
    os.truncate(path, 64 * GIB)  # a hole: takes no room
    start = time.thread_time()
    assert rows_of(path) == {"b.jpg": JPEG}
    assert time.thread_time() - start < 5


def test_lengths_beyond_reason_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with open(path, "wb") as file:
        file.write(tar_member("a.jpg", GIB))
        file.seek(GIB, 1)
        file.write(tar_member("b.jpg", 3) + JPEG.ljust(512, b"\0") + tar_member("c", 2**30, b"x"))
        file.truncate(3 * GIB)
    damage = "damaged: a member's name or notes of 1073741824 bytes"
    assert rows_of(path) == {"a.jpg": TOO_LONG, "b.jpg": JPEG, "(rest of x.tar)": damage}
    path.write_bytes(tar_member("a.jpg", 2**60))
    assert rows_of(path) == {"(rest of x.tar)": "the archive is cut off"}


def test_lengths_beyond_reason_in_records(tmp_path: Path) -> None:
    path = tmp_path / "x.rec"
    with open(path, "wb") as file:
        file.write(record(packed(1, JPEG)))
        file.write(MAGIC + struct.pack("<I", 2**29 - 4) + packed(2, b""))
        file.truncate(file.tell() + 2**29 - 4 - 24)
        file.seek(0, 2)
        file.write(record(packed(3, b"", (0.0,) * 9)[:-8]))
        # Parts without end, and labels beyond the end.
        file.write(MAGIC + struct.pack("<I", 1 << 29))
        file.write((MAGIC + struct.pack("<I", 2 << 29)) * 5000)
        file.write(record(struct.pack("<IfQQ", 2**32 - 1, 0, 4, 0)))
    rows = rows_of(path)
    assert rows["1"] == JPEG
    assert rows["2"] == f"wanted an image of at most 32 MiB, got {2**29 - 4} bytes"
    assert rows["3"] == rows["4"] == "damaged: the record is shorter than its labels"
    assert [text for key, text in rows.items() if key.startswith("(record at")] == [
        "damaged: wanted at most 1024 parts of a record, got more"
    ]


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/fiqa_fast_was_here",)


def test_a_pickle_that_would_run_something(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([JPEG, _Evil()], [True])))
    with pytest.raises(InputError, match=r"got posix.system, which is not run"):
        open_sources([tmp_path / "x.bin"])
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([JPEG, None, 7, JPEG], [True, 1])))
    wrong = "wanted encoded images, got something else as image "
    assert list(rows_of(tmp_path / "x.bin").values()) == [JPEG, wrong + "1", wrong + "2", JPEG]


def test_pages_in_a_loop(tmp_path: Path) -> None:
    path = WRITERS["x.lmdb"](tmp_path / "x.lmdb", IMAGES)
    data = bytearray(path.read_bytes())
    root = len(data) - 4096
    (place,) = struct.unpack_from("<H", data, root + 16)
    struct.pack_into("<H", data, root + place, root // 4096)  # its first child is itself
    path.write_bytes(data)
    assert rows_of(path) == {"(rest of x.lmdb)": "damaged: the pages form a loop"}


def test_tables_that_point_elsewhere(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "/etc/passwd"}, {"bytes": JPEG, "path": "../../a.jpg"}, None]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(rows, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    nothing = "wanted an encoded image, got nothing"
    expected = {"\\x2fetc/passwd": nothing, "\\x2e\\x2e/\\x2e\\x2e/a.jpg": JPEG, "2": nothing}
    assert rows_of(tmp_path / "x.parquet") == expected


@pytest.mark.parametrize("name", WRITERS)
def test_containers_that_are_pipes_folders_or_gone(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="got a pipe or a device"):
        open_sources([tmp_path / name])
    os.unlink(tmp_path / name)
    for target in ("gone", name):  # a link that leads nowhere, and one to itself
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(InputError, match=r"no such file|symbolic links"):
            open_sources([tmp_path / name])
        os.unlink(tmp_path / name)
    os.mkdir(tmp_path / name)
    with pytest.raises(InputError, match="no image found"):
        open_sources([tmp_path / name])


def test_an_index_that_is_a_pipe(tmp_path: Path) -> None:
    path = WRITERS["y.rec"](tmp_path / "x.rec", IMAGES)
    os.mkfifo(tmp_path / "x.idx")
    with pytest.raises(InputError, match="got a pipe"):
        open_sources([path])
    os.unlink(tmp_path / "x.idx")
    source = open_sources([path])[0]
    path.unlink()  # it vanishes between opening and reading
    (item,) = source
    assert item.key == "(rest of x.rec)"
    assert "no such file" in damages([source])[0]


def test_reads_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123")
    file = RandomFile(str(tmp_path / "x"))
    assert file.read(1, 3) == b"123"
    for offset, length in ((1, 4), (0, 2**62), (-1, 1), (1, -1), (2**70, 1), (4, 1)):
        with pytest.raises(ImageError, match="the file ends before this image does"):
            file.read(offset, length)


@pytest.mark.parametrize("name", ["x.zip", "x.lmdb"])
def test_fewer_members_than_there_should_be(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, IMAGES)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\5\6") + 10 if name == "x.zip" else 4096 + 16 + 24 + 48 + 32
    assert data[place] == len(IMAGES)
    data[place] += 1
    path.write_bytes(data)
    rows = rows_of(path)
    assert re.match("damaged: wanted 11 .*, got 10", str(rows.pop(f"(rest of {name})")))
    assert rows == IMAGES


def test_offsets_that_lead_out_of_a_table(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(struct.pack("<4i", 0, 3, 100_000, 9))
    buffers = [None, offsets, pyarrow.py_buffer(JPEG * 3)]
    images = pyarrow.Array.from_buffers(pyarrow.binary(), 3, buffers)
    batch = pyarrow.record_batch({"image": images})
    path = tmp_path / "x.arrow"
    with pyarrow.OSFile(str(path), "w") as file, pyarrow.ipc.new_stream(file, batch.schema) as out:
        out.write_batch(batch)
    (rest,) = rows_of(path).values()
    assert str(rest).startswith("damaged: ")


def test_batches_that_unpack_to_more_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiqa_fast.gallery.sources import arrow_messages, parquet_pages

    image = JPEG + bytes(10_000)
    table = pyarrow.table({"image": [JPEG] * 3 + [image] * 3})
    pyarrow.feather.write_feather(table, str(tmp_path / "x.feather"), chunksize=3)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    sound = {str(i): value.as_py() for i, value in enumerate(table["image"])}
    assert rows_of(tmp_path / "x.feather") == rows_of(tmp_path / "x.parquet") == sound
    monkeypatch.setattr(arrow_messages, "MAX_BATCH", 20_000)
    monkeypatch.setattr(parquet_pages, "MAX_DICTIONARY", 5_000)
    for name, wanted in (("x.feather", "wanted batches"), ("x.parquet", "wanted pages")):
        *rows, (key, error) = rows_of(tmp_path / name).items()
        assert dict(rows) == {str(i): JPEG for i in range(3)}
        assert key == f"(rest of {name})"
        assert str(error).startswith(wanted)


def test_entries_that_come_twice_in_an_environment(tmp_path: Path) -> None:
    path = WRITERS["x.lmdb"](tmp_path / "x.lmdb", {f"{i}.jpg": JPEG for i in range(3)})
    data = bytearray(path.read_bytes())
    first, _, third = (data.rindex(b"%d.jpg" % i) for i in range(3))
    data[third] = data[first]
    path.write_bytes(data)
    damage = "damaged: wanted sorted entries, got others"
    assert rows_of(path) == {"0.jpg": JPEG, "1.jpg": JPEG, "(rest of x.lmdb)": damage}


def test_lines_too_long_for_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    ends = (b"\n", b"\r\n", b"\n", b"\n", b"")
    lines = (b"a.jpg", b"x" * 2**16, b"y" * (2**16 + 1), b"z" * 2**20, b"a.jpg")
    (tmp_path / "x.txt").write_bytes(b"".join(map(bytes.__add__, lines, ends)))
    rows = rows_of(tmp_path / "x.txt")
    assert list(rows) == ["a.jpg", "x" * 2**16, "(line 3)", "(line 4)", "a.jpg#2"]
    assert (
        rows["(line 3)"]
        == rows["(line 4)"]
        == ("wanted a path, got a line of more than 65536 bytes")
    )
    assert open_sources([tmp_path / "x.txt"])[0].count() == 5
    (tmp_path / "utf16.txt").write_text("a.jpg\n", encoding="utf-16")
    (source,) = open_sources([f"{tmp_path}/*.txt"])  # one list of two is no list
    assert [item.key for item in source].index("utf16.txt") == 0
    assert len(damages([source])) == 1
