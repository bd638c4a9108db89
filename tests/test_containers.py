# SPDX-License-Identifier: Apache-2.0
"""Containers: the same images come out of each, in order, under keys of their own."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import stat
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from containers import (
    MAGIC,
    WRITERS,
    Images,
    hugging_face,
    packed,
    record,
    write_lmdb,
    write_parquet,
    write_rec,
    write_tar,
    write_zip,
)

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery import InputError, Item, open_sources
from fiqa_fast.gallery.sources import Source, damages, exact_total, skipped, total
from fiqa_fast.gallery.sources.braces import expand
from fiqa_fast.gallery.sources.keys import Distinct, member_key

JPEG = b"\xff\xd8\xff"
# Sorted, of many lengths; one holds the magic number of records, aligned and not.
IMAGES = {f"p{i // 4}/{i:02}.jpg": JPEG + bytes([i]) * (i * 977 % 5000) for i in range(10)}
IMAGES["p3/magic.jpg"] = JPEG + b"0" + MAGIC * 3 + b"1" + MAGIC + b"22"


def read(source: Source) -> list[tuple[str, bytes | str]]:
    """Keys with their bytes, or with what is wrong."""
    rows: list[tuple[str, bytes | str]] = []
    for item in source:
        try:
            with item.open() as file:
                rows.append((item.key, file.read()))
        except (ImageError, OSError) as error:
            rows.append((item.key, str(error)))
    return rows


def one(path: Any, **options: Any) -> Source:
    (source,) = open_sources([path], **options)
    return source


def by_key(path: Any, **options: Any) -> dict[str, bytes | str]:
    rows = read(one(path, **options))
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_what_was_put_in(tmp_path: Path, name: str) -> None:
    source = one(WRITERS[name](tmp_path / name, IMAGES))
    for _ in range(2):  # a source can be read again
        rows = read(source)
        assert [data for _, data in rows] == list(IMAGES.values())
        assert len({key for key, _ in rows}) == len(rows)
    assert damages([source]) == []
    assert exact_total([source]) >= len(IMAGES)
    numbers = [str(i) for i in range(1, len(IMAGES) + 1)]
    known = {".rec": numbers, ".bin": [f"{i:05}" for i in range(len(IMAGES))]}
    assert [key for key, _ in rows] == known.get(Path(name).suffix, list(IMAGES))


@pytest.mark.parametrize("name", WRITERS)
def test_items_travel_to_other_processes(tmp_path: Path, name: str) -> None:
    items = list(one(WRITERS[name](tmp_path / name, IMAGES)))
    copies = pickle.loads(pickle.dumps(items))
    assert [copy.open().read() for copy in copies] == list(IMAGES.values())


@pytest.mark.parametrize("name", WRITERS)
def test_many_readings_leave_no_open_files(tmp_path: Path, name: str) -> None:
    source = one(WRITERS[name](tmp_path / name, IMAGES))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read(source)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# Keys


def test_second_keys_are_numbered() -> None:
    distinct = Distinct()
    keys = ["a", "b", "a", "a#2", "a", "b", "a"]
    assert [distinct(key) for key in keys] == ["a", "b", "a#2", "a#2#2", "a#3", "b#2", "a#4"]


def test_distinct_keys_stay_as_they_are() -> None:
    distinct = Distinct()
    assert all(distinct(f"{i}.jpg") == f"{i}.jpg" for i in range(50_000))
    assert all(distinct(f"{i}.jpg") == f"{i}.jpg#2" for i in range(50_000))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a.jpg", "a.jpg"),
        (".//./a.jpg", "a.jpg"),
        ("/etc/passwd", "\\x2fetc/passwd"),
        ("//x", "\\x2f/x"),
        ("../../x", "\\x2e\\x2e/\\x2e\\x2e/x"),
        ("a/../../x..jpg", "a/\\x2e\\x2e/\\x2e\\x2e/x..jpg"),
        ("a\0b", "a\\x00b"),
        (os.fsdecode(b"\xe9.jpg"), "\\xe9.jpg"),
        ("a\nb", "a\nb"),
    ],
)
def test_keys_of_members_lead_nowhere(name: str, key: str) -> None:
    assert member_key(name) == key


def test_members_named_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for data in (b"1", b"2", b"3"):
            member = tarfile.TarInfo("a.jpg")
            member.size = 1
            tar.addfile(member, io.BytesIO(data))
    twice = {"a.jpg": b"1", "a.jpg#2": b"2", "a.jpg#3": b"3"}
    assert by_key(tmp_path / "x.tar") == twice
    table = hugging_face({"a.jpg": b"1"})
    pyarrow.parquet.write_table(pyarrow.concat_tables([table] * 2), tmp_path / "x.parquet")
    assert by_key(tmp_path / "x.parquet") == {"a.jpg": b"1", "a.jpg#2": b"1"}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in (("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")):
            archive.writestr(name, data)
    named = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(named.replace(b"b.jpg", b"a.jpg").replace(b"c.jpg", b"a.jpg"))
    assert by_key(tmp_path / "x.zip") == twice


def test_escaped_names_that_look_alike(tmp_path: Path) -> None:
    for name in (b"\xe9.jpg", b"\\xe9.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    assert by_key(tmp_path) == {"\\xe9.jpg": b"\\xe9.jpg", "\\xe9.jpg#2": b"\xe9.jpg"}


def test_inputs_within_one_another_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a/b", "z/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "c.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a: another input is below it"):
        open_sources(["a", "a/b", "z/b"])
    with pytest.raises(InputError, match="named twice"):
        open_sources(["a", "a/"])


# What is in archives beside images

SIDECARS = {"a.jpg": JPEG, "a.cls": b"3", "a.json": b"{}", "b": JPEG + b"x", ".c.jpg": JPEG}
SIDECARS |= {"d/._e.jpg": JPEG, "f.txt": b"", "g.PNG": b"broken", "h.npy": b"\x93NUMPY" + b"0" * 9}


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.zip"])
def test_members_that_are_no_images(
    tmp_path: Path, name: str, write: Callable[[Path, Images], Path]
) -> None:
    write = write_zip if name.endswith("zip") else write_tar
    source = one(write(tmp_path / name, SIDECARS))
    assert dict(read(source)) == {"a.jpg": JPEG, "b": JPEG + b"x", "g.PNG": b"broken"}
    assert skipped([source]) == 6
    assert by_key(tmp_path / name, ext=["txt"]) == {"f.txt": b""}


def test_links_devices_and_folders_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"{ord(kind)}.jpg")
            member.type, member.linkname, member.size = kind, "/etc/passwd", 0
            tar.addfile(member)
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        last = tarfile.TarInfo("d.jpg/a.jpg")
        last.size = 3
        tar.addfile(last, io.BytesIO(JPEG))
    source = one(tmp_path / "x.tar")
    assert dict(read(source)) == {"d.jpg/a.jpg": JPEG}
    assert skipped([source]) == 4


def test_links_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("d.jpg/", b"")
        archive.writestr("a.jpg", JPEG)
    source = one(tmp_path / "x.zip")
    assert dict(read(source)) == {"a.jpg": JPEG}
    assert skipped([source]) == 1


# tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_tar(tmp_path: Path, form: int) -> None:
    names = ["a.jpg", "d" * 90 + "/" + "e" * 60 + ".jpg", "ä b\n.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names.append("f" * 300 + ".jpg")
    images = {name: JPEG + name.encode() for name in names}
    assert by_key(write_tar(tmp_path / "x.tar", images, form)) == images


def test_tars_one_after_the_other(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "x.tar", {"a.jpg": JPEG}).read_bytes()
    second = write_tar(tmp_path / "x.tar", {"b.jpg": JPEG}).read_bytes()
    (tmp_path / "x.tar").write_bytes(first + second)
    assert by_key(tmp_path / "x.tar") == {"a.jpg": JPEG, "b.jpg": JPEG}
    (tmp_path / "x.tar").write_bytes(first + b"signature" * 100)
    assert by_key(tmp_path / "x.tar") == {"a.jpg": JPEG}


def sparse(pax: bool) -> bytes:
    member = tarfile.TarInfo("s.jpg")
    member.size = 512
    if pax:
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1099511627776"}
        return member.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    return bytes(header) + bytes(512) + b"x" * 512  # one more block of the map, then the bytes


@pytest.mark.parametrize("pax", [True, False])
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_sparse_members_are_refused(tmp_path: Path, pax: bool, suffix: str) -> None:
    whole = sparse(pax) + write_tar(tmp_path / "a.tar", {"a.jpg": JPEG}).read_bytes()
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(whole) if suffix == ".tgz" else whole)
    rows = by_key(path)
    assert rows == {"s.jpg": "wanted a plain file, got a sparse one", "a.jpg": JPEG}


class _Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = self
        self._file = io.BytesIO(data)

    def read(self, n: int) -> bytes:
        return self._file.read(n)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
def test_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    data = write_tar(tmp_path / name, IMAGES).read_bytes()
    monkeypatch.setattr(sys, "stdin", _Stdin(data))
    source = one(path)
    assert total([source]) is None
    assert read(source) == list(IMAGES.items())
    with pytest.raises(InputError, match="standard input can be read once only"):
        read(source)
    monkeypatch.setattr(sys, "stdin", _Stdin(data))
    sources = open_sources([path, tmp_path / name])
    assert [next(iter(source)).key for source in sources] == [
        "stdin/p0/00.jpg",
        f"{name}/p0/00.jpg",
    ]


@pytest.mark.parametrize(
    "data", [b"", b"a.jpg\n" * 99, gzip.compress(b"", mtime=0), b"\x1f\x8b" + b"x" * 99]
)
def test_standard_input_that_is_no_archive(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", _Stdin(data))
    with pytest.raises(InputError, match=r"standard input: (wanted a tar archive|the gzip data)"):
        open_sources(["-"])


# ZIP


def test_zips_with_something_before_and_after(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES)
    path.write_bytes(b"#!/bin/sh\n" * 7 + path.read_bytes())
    assert by_key(path) == IMAGES
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"x" * 60_000
    assert by_key(path) == IMAGES


def test_large_zips(tmp_path: Path) -> None:
    images = {f"{i}.jpg": b"%d" % i for i in range(66_000)}  # more than 16 bits count
    path = write_zip(tmp_path / "x.zip", images)
    source = one(path)
    assert source.count() == 66_000
    assert [item.key for item in source] == list(images)
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("a.jpg", "w", force_zip64=True) as file,
    ):
        file.write(JPEG)
    assert by_key(path) == {"a.jpg": JPEG}


def test_zips_that_are_locked_or_packed_otherwise(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.jpg": JPEG, "b.jpg": JPEG})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert by_key(path) == {"a.jpg": "wanted a plain member, got an encrypted one", "b.jpg": JPEG}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", JPEG)
    assert by_key(path) == {"a.jpg": "wanted a stored or deflated member, got method 14"}


# RecordIO


def test_records_without_a_header_record(tmp_path: Path) -> None:
    path = tmp_path / "x.rec"
    path.write_bytes(
        record(packed(7, JPEG)) + record(packed(7, b"")) + record(packed(9, JPEG, (1.0,) * 5))
    )
    assert by_key(path) == {"7": JPEG, "7#2": b"", "9": JPEG}


def test_an_index_names_the_records_and_their_order(tmp_path: Path) -> None:
    path = tmp_path / "x.rec"
    one_, two = record(packed(0, JPEG + b"1")), record(packed(0, JPEG + b"22"))
    path.write_bytes(one_ + two)
    path.with_suffix(".idx").write_text(f"20\t{len(one_)}\n10\t0\n")
    assert read(one(path)) == [("20", JPEG + b"22"), ("10", JPEG + b"1")]
    path.with_suffix(".idx").write_text("10\t0\n")
    source = one(path)
    rows = read(source)
    assert rows[0] == ("10", JPEG + b"1")
    assert rows[1][0] == "(rest of x.rec)"
    assert f"its .idx leaves out {len(two)} bytes" in str(rows[1][1])
    assert len(damages([source])) == 1


def test_a_damaged_record_costs_itself_alone(tmp_path: Path) -> None:
    path = write_rec(tmp_path / "x.rec", IMAGES)
    data = bytearray(path.read_bytes())
    offsets = [int(line.split()[1]) for line in path.with_suffix(".idx").read_text().splitlines()]
    data[offsets[3] + 4 : offsets[3] + 8] = struct.pack("<I", 0x1FFFFFFF)
    path.write_bytes(data)
    expected: dict[str, bytes | str] = {str(i): image for i, image in enumerate(IMAGES.values(), 1)}
    del expected["3"]
    error = "damaged or cut off: the record is longer than what is left"
    assert by_key(path) == expected | {"3": error}
    path.with_suffix(".idx").unlink()
    assert by_key(path) == expected | {f"(record at byte {offsets[3]})": error}


# Tables


def test_columns_of_images_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"

    def keys(**columns: Any) -> dict[str, bytes | str]:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return by_key(path)

    assert keys(photo=[b"1", None]) == {"0": b"1", "1": "wanted an encoded image, got nothing"}
    assert keys(jpg=[b"1"], other=[b"2"], __key__=["k"]) == {"k": b"1"}
    assert keys(image=[{"bytes": b"1", "path": None}], id=[17]) == {"17": b"1"}
    assert keys(image=[{"bytes": b"1"}], path=["../x"]) == {"\\x2e\\x2e/x": b"1"}
    for columns in ({"a": [1]}, {"a": [b"1"], "b": [b"2"]}, {"image": ["text"]}):
        with pytest.raises(InputError, match="wanted a column of encoded images"):
            keys(**columns)


@pytest.mark.parametrize("kind", [pyarrow.large_binary(), pyarrow.binary()])
def test_rows_are_numbered_over_row_groups(tmp_path: Path, kind: Any) -> None:
    values = [b"%d" % i for i in range(100)]
    table = pyarrow.table({"image": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    assert by_key(tmp_path / "x.parquet") == {str(i): value for i, value in enumerate(values)}
    assert one(tmp_path / "x.parquet").count() == 100


# LMDB


def test_notes_in_an_environment_are_left_out(tmp_path: Path) -> None:
    notes = {"__len__": b"2", "num-samples": b"2"}
    (tmp_path / "env").mkdir()
    write_lmdb(tmp_path / "env" / "data.mdb", notes | {"a": JPEG, "b": b"x"})
    source = one(tmp_path / "env")
    assert dict(read(source)) == {"a": JPEG, "b": b"x"}
    assert skipped([source]) == 2


# Patterns


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "d/a.jpg", "d/e/c.jpg", ".h/a.jpg", "f[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def keys(pattern: str, **options: Any) -> list[str]:
        return list(by_key(f"{tmp_path}/{pattern}", **options))

    assert keys("*.jpg") == ["a.jpg", "f[1].jpg"]
    assert keys("*") == ["a.jpg", "b.png", "d/a.jpg", "d/e/c.jpg", "f[1].jpg"]
    assert keys("*", ext=["png"]) == ["b.png"]
    assert keys("**/*.jpg") == ["a.jpg", "d/a.jpg", "d/e/c.jpg", "f[1].jpg"]
    assert keys("**/e") == ["d/e/c.jpg"]
    assert keys("?/*.jpg") == ["d/a.jpg"]
    assert keys("d/*/[a-c].jpg") == ["e/c.jpg"]
    assert keys("f[1].jpg") == ["f[1].jpg"]  # a file of that name is meant
    with pytest.raises(InputError, match=r"\*.gif: no file matches"):
        keys("*.gif")


def test_patterns_of_containers(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", {"a.jpg": JPEG + bytes([i])})
    (tmp_path / "1.tar").write_bytes(b"no archive")
    source = one(f"{tmp_path}/*.tar")
    rows = read(source)
    assert [key for key, _ in rows] == ["0.tar/a.jpg", "1.tar", "2.tar/a.jpg"]
    assert "wanted a tar archive" in str(rows[1][1])
    assert len(damages([source])) == 1
    os.truncate(tmp_path / "2.tar", 1024)
    assert [key for key, _ in read(source)][2:] == ["2.tar/a.jpg", "2.tar/(rest of 2.tar)"]
    assert len(damages([source])) == 2
    write_parquet(tmp_path / "x.parquet", {"a.jpg": JPEG})
    sources = open_sources([f"{tmp_path}/*.tar", f"{tmp_path}/*.parquet"])
    assert next(iter(sources[1])).key == f"{tmp_path}/*.parquet/x.parquet/a.jpg"
    assert isinstance(next(iter(sources[0])), Item)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a{0..3}.tar", "a0.tar a1.tar a2.tar a3.tar"),
        ("{08..11}", "08 09 10 11"),
        ("{3..1}{a,b}", "3a 3b 2a 2b 1a 1b"),
        ("{0..10..5}", "0 5 10"),
        ("{a..c}", "a b c"),
        ("a{b,{c,d}}", "ab ac ad"),
        ("x{,y}", "x xy"),
        ("{-1..1}", "-1 0 1"),
        ("{a} {} {a..} {1..b}", "{a} {} {a..} {1..b}"),
    ],
)
def test_braces_as_a_shell_expands_them(text: str, names: str) -> None:
    assert expand(text) == ([text] if text == names else names.split(" "))


@pytest.mark.parametrize("text", ["{0..100000}", "{0..999999999999999999}", "{a,b}" * 40])
def test_braces_without_end(text: str) -> None:
    with pytest.raises(InputError, match=r"wanted at most (100000 names|32 pairs of braces), got"):
        expand(text)


def test_patterns_with_braces(tmp_path: Path) -> None:
    for i in (0, 1, 3):
        write_tar(tmp_path / f"s-{i:03}.tar", {"a.jpg": JPEG + bytes([i])})
    for name in ("d/x.jpg", "e/x.jpg", "e/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = one(f"{tmp_path}/s-{{000..003}}.tar")
    rows = {f"s-{i:03}.tar/a.jpg": JPEG + bytes([i]) for i in (0, 1, 3)}
    assert dict(read(source)) == {**rows, "s-002.tar": "no such file"}
    assert damages([source]) == [f"{tmp_path}/s-002.tar: no such file"]
    assert list(by_key(f"{tmp_path}/{{e,d}}/x.jpg")) == ["e/x.jpg", "d/x.jpg"]
    assert list(by_key(f"{tmp_path}/{{e,d}}")) == ["e/x.jpg", "e/y.jpg", "d/x.jpg"]
    assert list(by_key(f"{tmp_path}/e/{{x,y}}.*")) == ["x.jpg", "y.jpg"]
    assert list(by_key(f"{tmp_path}/{{e/*,e/x.jpg}}")) == ["e/x.jpg", "e/y.jpg", "e/x.jpg#2"]
    (tmp_path / "{d,e}").mkdir()
    (tmp_path / "{d,e}" / "z.jpg").write_bytes(b"")
    assert list(by_key(f"{tmp_path}/{{d,e}}")) == ["z.jpg"]  # a folder of that name is meant
    with pytest.raises(InputError, match="no file matches"):
        one(f"{tmp_path}/t-{{0..9}}.tar")
