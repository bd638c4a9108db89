# SPDX-License-Identifier: Apache-2.0
"""Hostile containers: a name, what is wrong with it in words, and what writes it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
from containers import MAGIC, WRITERS, hugging_face, packed, record, write_rec, write_tar
from hostile_images import encoded, picture

# A file name, what it is in words, what writes it.
HostileContainer = tuple[str, str, Callable[[Path], Any]]
GIB = 2**30


def crops() -> dict[str, bytes]:
    return {f"{i}.png": encoded("PNG", picture().rotate(90 * i)) for i in range(3)}


def good(name: str, path: Path) -> bytearray:
    return bytearray(WRITERS[name](path, crops()).read_bytes())


class Evil:
    """Pickled, it is a command for whoever unpickles it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


def _poke(name: str, where: Callable[[bytes], int], value: bytes) -> Callable[[Path], Any]:
    """Writes a sound container with other bytes at one place."""

    def write(path: Path) -> None:
        data = good(name, path)
        start = where(bytes(data))
        data[start : start + len(value)] = value
        path.write_bytes(data)

    return write


def _cut(name: str) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        data = good(name, path)
        path.write_bytes(data[: len(data) * 2 // 3])

    return write


def _text(path: Path) -> None:
    path.write_bytes(b"no container at all\n" * 100)


# Records


def _index(*lines: str) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        write_rec(path, crops())
        path.with_suffix(".idx").write_text("".join(line + "\n" for line in lines))

    return write


def _records() -> Iterator[HostileContainer]:
    most = struct.pack("<I", 0x1FFFFFFF)
    yield "long.rec", "a record of 512 MiB by its length", _poke("y.rec", _second_record, most)
    yield (
        "kind.rec",
        "a record that is the middle of another",
        _poke("y.rec", _second_record, struct.pack("<I", 2 << 29 | 64)),
    )
    parts = record(packed(1, encoded("PNG"))) + (MAGIC + struct.pack("<I", 1 << 29)) * 1500
    yield "parts.rec", "records of parts without end", lambda path: path.write_bytes(parts)
    labels = record(struct.pack("<IfQQ", 2**32 - 1, 0, 1, 0) + encoded("PNG"))
    yield "labels.rec", "a record of 2^32 labels", lambda path: path.write_bytes(labels)
    yield (
        "offsets.rec",
        "an .idx whose offsets lead beyond the file, and into a record",
        _index("1\t0", f"2\t{2**63}", "3\t21", "4\t-5"),
    )
    yield (
        "index.rec",
        "an .idx of text and numbers of a thousand digits",
        _index("no index", "1\t" + "9" * 1000, "\t\t\t"),
    )


def _second_record(data: bytes) -> int:
    return data.index(MAGIC, data.index(MAGIC) + 4) + 4


# tar


def member(name: str, size: int, kind: bytes = b"0") -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    return header.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _tar(*blocks: bytes) -> Callable[[Path], Any]:
    image = encoded("PNG")
    last = member("last.png", len(image)) + _padded(image) + bytes(1024)
    return lambda path: path.write_bytes(b"".join(blocks) + last)


def _links(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            header = tarfile.TarInfo(f"{ord(kind)}.png")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
        image = encoded("PNG")
        header = tarfile.TarInfo("image.png")
        header.size = len(image)
        tar.addfile(header, io.BytesIO(image))


def _gzip_bomb(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(member("a.png", GIB // 8))
        for _ in range(128):
            file.write(bytes(2**20))


def _endless(path: Path) -> None:
    _tar()(path)
    os.truncate(path, 64 * GIB)  # a hole: takes no room


def _tars() -> Iterator[HostileContainer]:
    outside = {"/etc/passwd.png": encoded("PNG"), "../../up.png": encoded("PNG")}
    yield "paths.tar", "members that lead out of the archive", lambda p: write_tar(p, outside)
    yield "links.tar", "links, pipes and devices as members", _links
    note = tarfile.TarInfo("s.png")
    note.size = 512
    note.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**40)}
    holes = note.tobuf(tarfile.PAX_FORMAT) + _padded(b"0\n")
    yield "sparse.tar", "a sparse member of 1 TiB", _tar(holes)
    huge = member("s.png", 2**40, b"S")
    yield "sparse_gnu.tar", "a sparse member of 1 TiB, the old way", _tar(huge)
    yield "size.tar", "a member of 2^60 bytes", _tar(member("a.png", 2**60))
    yield "name.tar", "a name of 1 GiB", _tar(member("././@LongLink", GIB, b"L"))
    yield "checksum.tar", "a header with a wrong checksum", _poke("x.tar", _second_header, b"\xff")
    yield "cut.tar", "an archive that is cut off", _cut("x.tar")
    yield (
        "twice.tar",
        "two members of one name",
        _tar(member("last.png", len(encoded("PNG"))) + _padded(encoded("PNG"))),
    )
    yield "endless.tar", "64 GiB of zeros after the archive", _endless
    yield "bomb.tar.gz", "128 MiB of zeros in a compressed member of 600 KB", _gzip_bomb
    yield "cut.tar.gz", "compressed data that is cut off", _cut("x.tar.gz")


def _second_header(data: bytes) -> int:
    return data.index(b"1.png") + 20


# ZIP


def _zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.png", "w") as file:
            for _ in range(64):
                file.write(bytes(2**20))
        archive.writestr("b.png", encoded("PNG"))


def _lying_zip(path: Path) -> None:
    _zip_bomb(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2") + 24
    data[start : start + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)


def _overlapping_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0000.png", bytes(2**20))
    data = path.read_bytes()
    directory = data.index(b"PK\1\2")
    entry = data[directory : data.index(b"PK\5\6")]
    entries = b"".join(entry.replace(b"0000", b"%04d" % i) for i in range(100))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 100, 100, len(entries), directory, 0)
    path.write_bytes(data[:directory] + entries + end)


def _zips() -> Iterator[HostileContainer]:
    yield "bomb.zip", "64 MiB of zeros in 64 KB", _zip_bomb
    yield "lying.zip", "the same, with a length of 1000 bytes in the directory", _lying_zip
    yield "overlap.zip", "100 members that share their bytes", _overlapping_zip
    most = struct.pack("<I", 2**32 - 2)
    yield (
        "offset.zip",
        "a directory beyond the end",
        _poke("x.zip", lambda data: data.index(b"PK\5\6") + 16, most),
    )
    yield (
        "members.zip",
        "60,000 members by its end, three in the directory",
        _poke("x.zip", lambda data: data.index(b"PK\5\6") + 8, struct.pack("<HH", 60_000, 60_000)),
    )
    yield (
        "member.zip",
        "a member beyond the end",
        _poke("x.zip", lambda data: data.index(b"PK\1\2") + 42, most),
    )
    yield "cut.zip", "an archive that is cut off", _cut("x.zip")


# Pickles


def _pickle(content: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(pickle.dumps(content(path.parent / "witness"), 4))


def _pickles() -> Iterator[HostileContainer]:
    image = encoded("PNG")
    yield "evil.bin", "a pickle that runs a command", _pickle(lambda w: ([image, Evil(w)], [True]))
    yield "build.bin", "one that runs it while an object is built", _pickle(lambda w: Evil(w))
    nested = b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."
    yield "nested.bin", "200,000 lists within one another", lambda p: p.write_bytes(nested)
    long = b"\x80\x04(\x8e" + struct.pack("<Q", 2**40) + b"t."
    yield "long.bin", "a string of 1 TiB by its length", lambda p: p.write_bytes(long)
    laughs = b"\x80\x04]" + b"".join(b"\x94h" + bytes([i]) * 1 + b"\x86" for i in range(64)) + b"."
    yield "laughs.bin", "a list of itself, doubled 64 times", lambda p: p.write_bytes(laughs)
    memo = b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b"."
    yield "memo.bin", "a note under the number 2^32", lambda p: p.write_bytes(memo)
    mixed = _pickle(lambda w: ([image, None, 7, image], [True, True]))
    yield "mixed.bin", "images that are none among images", mixed


# LMDB


def _lmdb() -> Iterator[HostileContainer]:
    def root(data: bytes) -> int:
        return struct.unpack_from("<Q", data, 4096 + 16 + 24 + 48 + 40)[0] * 4096

    def child(data: bytes) -> int:
        return root(data) + struct.unpack_from("<H", data, root(data) + 16)[0]

    def loop(path: Path) -> None:
        data = good("x.lmdb", path)
        struct.pack_into("<H", data, child(bytes(data)), root(bytes(data)) // 4096)
        path.write_bytes(data)

    yield "loop.lmdb", "pages in a loop", loop
    yield "pages.lmdb", "a page beyond the end", _poke("x.lmdb", child, b"\xff\xff")
    entries = struct.pack("<Q", 2**60)
    yield (
        "entries.lmdb",
        "2^60 entries by its head",
        _poke("x.lmdb", lambda data: 4096 + 16 + 24 + 48 + 32, entries),
    )
    lower = struct.pack("<H", 4096)
    yield (
        "places.lmdb",
        "a page of 2040 entries",
        _poke("x.lmdb", lambda data: root(data) + 12, lower),
    )
    yield "cut.lmdb", "an environment that is cut off", _cut("x.lmdb")


# Tables


def _stream(path: Path, *batches: pyarrow.RecordBatch, compression: str | None = None) -> None:
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with (
        pyarrow.OSFile(str(path), "w") as file,
        pyarrow.ipc.new_stream(file, batches[0].schema, options=options) as out,
    ):
        for batch in batches:
            out.write_batch(batch)


def _offsets(path: Path) -> None:
    offsets = pyarrow.py_buffer(struct.pack("<4i", 0, 3, 10**6, 9))
    buffers = [None, offsets, pyarrow.py_buffer(bytes(9))]
    images = pyarrow.Array.from_buffers(pyarrow.binary(), 3, buffers)
    _stream(path, pyarrow.record_batch({"image": images}))


def _zeros() -> pyarrow.Table:
    """1.5 GiB of nothing, which takes no room until somebody writes to it."""
    length, count = 2**20, 1536
    offsets = struct.pack(f"<{count + 1}i", *range(0, count * length + 1, length))
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(bytes(count * length))]
    return pyarrow.table({"image": pyarrow.Array.from_buffers(pyarrow.binary(), count, buffers)})


def _packed_arrow(path: Path) -> None:
    batch = _zeros().to_batches()[0]
    _stream(path, batch, compression="zstd")


def _elsewhere(path: Path) -> None:
    table = hugging_face({"/etc/passwd": encoded("PNG"), "../up.png": encoded("PNG")})
    pyarrow.parquet.write_table(table, path)


def _parquet_bomb(path: Path) -> None:
    """One value of 512 MiB in the dictionary, which every row has."""
    length = 2**29
    offsets = pyarrow.py_buffer(struct.pack("<2i", 0, length))
    value = pyarrow.Array.from_buffers(
        pyarrow.binary(), 1, [None, offsets, pyarrow.py_buffer(bytes(length))]
    )
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10_000, "int32"), value)
    table = pyarrow.table({"image": column})
    pyarrow.parquet.write_table(
        table, path, compression="zstd", store_schema=False, write_statistics=False
    )


def _footer(value: int) -> Callable[[Path], Any]:
    """A Parquet footer of other length."""

    def write(path: Path) -> None:
        data = good("x.parquet", path)
        data[-8:-4] = struct.pack("<I", value)
        path.write_bytes(data)

    return write


def _tables() -> Iterator[HostileContainer]:
    yield "offsets.arrow", "offsets that lead out of the table", _offsets
    yield "bomb.arrow", "1.5 GiB of zeros, compressed to some KB", _packed_arrow
    metadata = struct.pack("<I", 2**31 - 1)
    yield (
        "metadata.arrow",
        "a message of 2 GiB by its length",
        _poke("x.arrow", lambda data: 4, metadata),
    )
    yield "cut.arrow", "a stream that is cut off", _cut("x.arrow")
    yield (
        "footer.feather",
        "a footer of 2 GiB by its length",
        _poke("x.feather", lambda data: len(data) - 10, metadata),
    )
    yield "paths.parquet", "paths that lead elsewhere", _elsewhere
    yield "footer.parquet", "a footer of 4 GiB by its length", _footer(2**32 - 1)
    yield "bomb.parquet", "10,000 rows of one value of 512 MiB, 20 KB in all", _parquet_bomb
    yield "cut.parquet", "a file that is cut off", _cut("x.parquet")


def _none() -> Iterator[HostileContainer]:
    for suffix in [
        "tar",
        "tar.gz",
        "zip",
        "rec",
        "bin",
        "lmdb",
        "parquet",
        "arrow",
        "feather",
        "mp4",
    ]:
        yield f"text.{suffix}", f"text that is called .{suffix}", _text

    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n"
    yield "playlist.mp4", "a playlist of other files", lambda path: path.write_bytes(playlist)


def hostile_containers() -> list[HostileContainer]:
    """All of them, in the order of the page."""
    groups = (_records, _tars, _zips, _pickles, _lmdb, _tables, _none)
    return [container for group in groups for container in group()]
