# SPDX-License-Identifier: Apache-2.0
"""The same images written into every container that is a source."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet

Images = Mapping[str, bytes]
MAGIC = struct.pack("<I", 0xCED7230A)


def record(data: bytes) -> bytes:
    """One RecordIO record, in parts where the bytes hold the magic number at a multiple of 4."""
    parts, start = [], 0
    for place in range(0, len(data) - 3, 4):
        if data[place : place + 4] == MAGIC:
            parts.append(data[start:place])
            start = place + 4
    parts.append(data[start:])
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    written = b""
    for kind, part in zip(kinds, parts, strict=True):
        written += MAGIC + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    return written


def packed(identifier: int, data: bytes, labels: tuple[float, ...] | float = 0.0) -> bytes:
    if isinstance(labels, tuple):
        header = struct.pack("<IfQQ", len(labels), 0.0, identifier, 0)
        return header + struct.pack(f"<{len(labels)}f", *labels) + data
    return struct.pack("<IfQQ", 0, labels, identifier, 0) + data


def write_rec(path: Path, images: Images, index: bool = True) -> Path:
    """As insightface does: record 0 has the ranges, images follow, then ranges of identities."""
    n = len(images)
    contents = [packed(0, b"", (n + 1.0, n + 2.0))]
    for i, data in enumerate(images.values(), 1):
        contents.append(packed(i, data, float(i) if i % 2 else (float(i), 0.0)))
    contents.append(packed(n + 1, b"", (1.0, n + 1.0)))
    written, lines = b"", ""
    for i, content in enumerate(contents):
        lines += f"{i}\t{len(written)}\n"
        written += record(content)
    path.write_bytes(written)
    if index:
        path.with_suffix(".idx").write_text(lines)
    return path


def write_tar(path: Path, images: Images, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w", format=form) as tar:
        for name, data in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, images: Images) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, data) in enumerate(images.items()):
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    return path


def write_bin(path: Path, images: Images) -> Path:
    path.write_bytes(pickle.dumps((list(images.values()), [True] * (len(images) // 2)), 4))
    return path


def hugging_face(images: Images) -> pyarrow.Table:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"bytes": data, "path": name} for name, data in images.items()]
    return pyarrow.table({"label": list(range(len(rows))), "image": pyarrow.array(rows, kind)})


def write_parquet(path: Path, images: Images) -> Path:
    pyarrow.parquet.write_table(hugging_face(images), path, row_group_size=4)
    return path


def write_arrow(path: Path, images: Images) -> Path:
    table = hugging_face(images)
    with pyarrow.OSFile(str(path), "w") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=3)
    return path


def write_saved(path: Path, images: Images) -> Path:
    """A folder as save_to_disk writes it, of two files."""
    path.mkdir(exist_ok=True)
    names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    half = len(images) // 2
    for name, some in zip(names, (slice(half), slice(half, None)), strict=True):
        write_arrow(path / name, dict(list(images.items())[some]))
    (path / "dataset_info.json").write_text("{}")
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    return path


def write_feather(path: Path, images: Images) -> Path:
    pyarrow.feather.write_feather(hugging_face(images), str(path), chunksize=3)
    return path


def write_lmdb(path: Path, images: Images) -> Path:
    """An environment of one branch page, leaves of three entries and long values on their own."""
    page = 4096
    pages: list[bytes] = [b"", b""]
    children: list[tuple[bytes, int]] = []
    entries = sorted((name.encode(), data) for name, data in images.items())

    def tree_page(kind: int, nodes: list[bytes]) -> int:
        body, places = b"", []
        for node in nodes:
            body = node + bytes(len(node) % 2) + body
            places.append(page - len(body))
        number = len(pages)
        lower = 16 + 2 * len(places)
        head = struct.pack("<QHHHH", number, 0, kind, lower, page - len(body))
        head += struct.pack(f"<{len(places)}H", *places)
        pages.append(head + bytes(page - len(head) - len(body)) + body)
        return number

    for start in range(0, len(entries), 3):
        nodes = []
        for key, data in entries[start : start + 3]:
            size = struct.pack("<HH", len(data) & 0xFFFF, len(data) >> 16)
            if len(data) < 1000:
                nodes.append(size + struct.pack("<HH", 0, len(key)) + key + data)
                continue
            number = len(pages)
            count = -(-(16 + len(data)) // page)
            long = struct.pack("<QHHI", number, 0, 4, count) + data
            long += bytes(count * page - len(long))
            pages.extend(long[i : i + page] for i in range(0, len(long), page))
            nodes.append(size + struct.pack("<HHQ", 1, len(key), number)[:4] + key)
            nodes[-1] += struct.pack("<Q", number)
        children.append((entries[start][0], tree_page(2, nodes)))
    nodes = []
    for i, (key, number) in enumerate(children):
        key = key if i else b""
        low = struct.pack("<HHHH", number & 0xFFFF, number >> 16, 0, len(key))
        nodes.append(low + key)
    root = tree_page(1, nodes)
    free = struct.pack("<IHHQQQQQ", page, 0, 0, 0, 0, 0, 0, 2**64 - 1)
    table = struct.pack("<IHHQQQQQ", 0, 0, 2, 1, len(children), 0, len(entries), root)
    for number in (0, 1):
        head = struct.pack("<QHHHH", number, 0, 8, 0, 0)
        # The first is of the time before anything was written.
        meta = struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 2**20) + free + (table if number else free)
        meta += struct.pack("<QQ", len(pages) - 1, number)
        pages[number] = (head + meta).ljust(page, b"\0")
    path.write_bytes(b"".join(pages))
    return path


WRITERS: dict[str, Callable[[Path, Images], Path]] = {
    "x.rec": write_rec,
    "y.rec": lambda path, images: write_rec(path, images, index=False),
    "x.tar": write_tar,
    "x.tar.gz": write_tar,
    "x.zip": write_zip,
    "x.bin": write_bin,
    "x.parquet": write_parquet,
    "x.arrow": write_arrow,
    "x.feather": write_feather,
    "x.lmdb": write_lmdb,
}
