# SPDX-License-Identifier: Apache-2.0
"""Frames of videos: which, in which order, upright; damage and sizes beyond reason."""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import table

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery import InputError, open_sources
from fiqa_fast.gallery.sources import Source, damages, video
from fiqa_fast.images import decode

av = pytest.importorskip("av")
ROUNDS = int(os.environ.get("FIQA_FAST_FUZZ_ROUNDS", "60"))


def shade(number: int) -> int:
    return 20 + 7 * (number % 32)


def write_video(path: Path, frames: int = 30, codec: str = "mpeg4", side: int = 64) -> Path:
    """Frames that get brighter, red on their left; the index stands before the frames."""
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side // 2, "yuv420p"
        if codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        stream.gop_size = 5
        if codec == "mpeg4":
            stream.bit_rate = 10**7
        for number in range(frames):
            pixels = np.full((side // 2, side, 3), shade(number), np.uint8)
            pixels[:, : side // 4] = (255, 0, 0)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def one(path: Any, **options: Any) -> Source:
    (source,) = open_sources([path], **options)
    return source


def read(source: Source) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for item in source:
        try:
            with item.open() as file:
                rows[item.key] = decode(file)
        except ImageError as error:
            rows[item.key] = str(error)
    return rows


@pytest.mark.parametrize(
    ("name", "codec"), [("x.mp4", "mpeg4"), ("x.mkv", "mpeg4"), ("x.avi", "mjpeg")]
)
def test_every_frame_in_order(tmp_path: Path, name: str, codec: str) -> None:
    source = one(write_video(tmp_path / name, codec=codec))
    for _ in range(2):  # a source can be read again
        rows = read(source)
        assert list(rows) == [f"{i:06d}" for i in range(30)]
        assert damages([source]) == []
        for number, pixels in enumerate(rows.values()):
            assert pixels.shape == (32, 64, 3)
            assert abs(pixels[:, 40:].astype(int) - shade(number)).mean() < 6
            red, green, _ = pixels[:, :8].reshape(-1, 3).mean(0)
            assert red > 200 > 60 > green
    assert source.count() in (30, None)


def test_some_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4")
    source = one(tmp_path / "x.mp4", every=12)
    whole = read(one(tmp_path / "x.mp4"))
    assert source.count() == 3
    rows = read(source)
    assert list(rows) == ["000000", "000012", "000024"]
    assert all((rows[key] == whole[key]).all() for key in rows)
    keys = [item.key for item in one(f"{tmp_path}/*.mp4", every=20)]
    assert keys == ["x.mp4/000000", "x.mp4/000020"]


def test_frames_stand_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, matrix)[0] == 1 << 16
    quarter = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # to the right
    struct.pack_into(">9i", data, matrix, *quarter)
    path.write_bytes(data)
    pixels = read(one(path))["000000"]
    assert pixels.shape == (64, 32, 3)
    assert pixels[:8, :, 0].mean() > 200 > 60 > pixels[32:, :, 0].mean()  # red has come to the top


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
def test_videos_that_are_cut_off(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name)
    whole = read(one(path))
    os.truncate(path, path.stat().st_size * 2 // 3)
    source = one(path)
    rows = read(source)
    *good, (key, error) = rows.items()
    assert 4 < len(good) < 25
    assert all((pixels == whole[key]).all() for key, pixels in good)
    assert key == f"(rest of {name})"
    assert "cut off" in error
    assert len(damages([source])) == 1


def test_videos_that_are_damaged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = os.urandom(2000)
    path.write_bytes(data)
    *good, (key, error) = read(one(path)).items()
    assert 5 < len(good) < 25
    assert key == "(rest of x.mp4)"
    assert error.startswith("damaged")


def test_frames_beyond_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.avi", 20, "mjpeg")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0", len(data) // 2)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(data)
    *good, (key, _) = read(one(path)).items()
    assert 3 < len(good) < 15
    assert key == "(rest of x.avi)"
    monkeypatch.setattr(video, "_MAX_PIXELS", 64 * 32 - 1)
    with pytest.raises(InputError, match="wanted frames of at most 0 Mpixel, got 64 x 32"):
        one(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video " * 100,
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
    ],
)
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(InputError, match="no video to be read: damaged or cut off") as error:
        one(tmp_path / "x.mp4")
    assert "\n" not in str(error.value)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.mp4", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"videos need PyAV; pip install 'fiqa_fast\[video\]'"):
        one(path)


def test_mutations(tmp_path: Path) -> None:
    rng = random.Random(0)
    for name in ("x.mp4", "x.mkv", "x.avi"):
        path = write_video(tmp_path / name, 8)
        data = path.read_bytes()
        for _ in range(ROUNDS):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 5, 50))):
                changed[rng.randrange(len(changed)) % rng.choice((100, 10**9))] = rng.randrange(256)
            path.write_bytes(changed)
            assert all(text.isprintable() for text in errors(path))


def errors(path: Path) -> list[str]:
    """What is wrong with a video, in lines."""
    try:
        return [row for row in read(one(path)).values() if isinstance(row, str)]
    except InputError as error:
        return [str(error)]


def test_scores_of_a_video(cli: Any, tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", 9)
    output = tmp_path / "out.parquet"
    outcome = cli("score", tmp_path / "x.mp4", "--every", "4", "-o", output)
    assert outcome.status == 0, outcome.err
    assert list(table(output)) == ["000000", "000004", "000008"]
