# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: pictures, broken files, what a run left behind."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

# `python -c` looks for packages where it is run before it looks at the installed ones, and the
# source tree has no compiled code: so not there.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.path.remove(''); from fiqa_fast.cli import main; main()",
]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def face(path: Path, seed: int, size: int = 112) -> Path:
    """A picture that differs from its neighbours in detail, and so in score."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3 + seed % 9, 3 + seed % 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, "PNG")
    return path


def make_broken(folder: Path, sample: bytes) -> list[str]:
    """Fifty files that are no image, of many kinds; ``sample`` is a good JPEG. Returns the keys."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8)).save(buffer, "PNG")
    png = buffer.getvalue()
    bomb = b"P6\n60000 60000\n255\n" + b"\0" * 100
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"this is not an image\n",
        "page.png": b"<!DOCTYPE html><html><body>404</body></html>",
        "numbers.csv": b"path,score\n",
        "archive.zip": b"PK\x03\x04" + bytes(60),
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "name with spaces.jpg": b"x",
        'comma, "quote".jpg': b"x",
        "line\nbreak.jpg": b"x",
        "bomb.ppm": bomb,
        "bomb.png": png[:16] + (60000).to_bytes(4, "big") * 2 + png[24:],
        "float.tif": _tiff("F"),
        "integer.tif": _tiff("I"),
        "only header.png": png[:8],
        "flipped bits.png": png[:60] + bytes(255 - b for b in png[60:2000]) + png[2000:],
    }
    for i in range(10):
        contents[f"cut{i}.jpg"] = sample[: len(sample) * i // 10]
        contents[f"cut{i}.png"] = png[: len(png) * (i + 1) // 11]
        contents[f"noise{i}.jpg"] = rng.bytes(1000 + i)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / os.fsdecode(b"not utf8 \xff\xfe.jpg")).write_bytes(b"x")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "link to empty.jpg").symlink_to("empty.jpg")
    # These are no inputs, and must neither hang nor count.
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / ".hidden.jpg").write_bytes(b"x")
    keys = [*contents, "not utf8 \\xff\\xfe.jpg", "dangling.jpg", "self.jpg", "link to empty.jpg"]
    assert len(keys) == 50
    return keys


def _tiff(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (112, 112)).save(buffer, "TIFF")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(path: Path) -> dict[str, tuple[Any, Any]]:
    columns = pq.read_table(path).to_pydict()
    rows = zip(columns["path"], columns["score"], columns["error"], strict=True)
    return {key: (score, error) for key, score, error in rows}


def one_line_error(outcome: Outcome) -> str:
    assert outcome.status == 2
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("fiqa-fast: error: ")
    return lines[0].removeprefix("fiqa-fast: error: ")
