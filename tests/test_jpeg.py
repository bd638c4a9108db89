# SPDX-License-Identifier: Apache-2.0
"""Plain JPEGs take a shorter way, to the same pixels and the same refusals as Pillow's."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_fast import image_limits, images
from fiqa_fast.errors import ImageError
from fiqa_fast.jpeg import decode_plain

Pixels = npt.NDArray[np.uint8]


def jpeg(mode: str, height: int, width: int, **options: Any) -> bytes:
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[0:height, 0:width]
    picture = 110 + 60 * np.sin(x / 5) + 40 * np.cos(y / 3) + rng.normal(0, 12, (height, width))
    planes = [np.roll(picture, 3 * channel, axis=1) for channel in range(3)]
    image = Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> Pixels:
    """Pillow's pixels, or its refusal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "decode_plain", lambda data: None)
        return images.decode(data)


@pytest.mark.parametrize("size", [(112, 112), (1, 1), (17, 250), (31, 33)], ids=str)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("quality", [30, 95])
def test_colour_is_as_pillow_decodes_it(
    size: tuple[int, int], subsampling: str, progressive: bool, quality: int
) -> None:
    data = jpeg("RGB", *size, quality=quality, subsampling=subsampling, progressive=progressive)
    pixels = decode_plain(data)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, by_pillow(data))


def test_grey_restarts_and_comments_are_as_pillow_decodes_them() -> None:
    for data in (
        jpeg("L", 40, 33),
        jpeg("RGB", 64, 48, restart_marker_blocks=2),
        jpeg("RGB", 64, 48, comment=b"a comment", dpi=(72, 72), optimize=True),
        jpeg("RGB", 20, 20) + b"what follows the end",
    ):
        pixels = decode_plain(data)
        assert pixels is not None
        np.testing.assert_array_equal(pixels, by_pillow(data))


def turned() -> list[bytes]:
    """By EXIF and by either form of XMP."""
    exif = Image.Exif()
    exif[0x0112] = 6
    notes = (b"<tiff:Orientation>6</tiff:Orientation>", b'<a tiff:Orientation="6"/>')
    return [jpeg("RGB", 24, 36, exif=exif), *(jpeg("RGB", 24, 36, xmp=xmp) for xmp in notes)]


def test_what_is_not_plain_is_left_to_pillow() -> None:
    whole = jpeg("RGB", 48, 48)
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    for data in (
        b"",
        b"\xff\xd8\xff",
        png.getvalue(),
        jpeg("CMYK", 20, 20),
        jpeg("RGB", 20, 20, keep_rgb=True),
        *turned(),
        whole[: len(whole) // 2],
        whole[:-2],  # the end is missing
        whole[:-2] + b"no",
    ):
        assert decode_plain(data) is None
    for data in turned():
        assert images.decode(data).shape == (36, 24, 3)


def test_limits_come_before_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg("RGB", 16, 16)
    start = data.index(b"\xff\xc0")
    size = struct.pack(">HH", 60000, 60000)
    with pytest.raises(ImageError, match="wanted at most 64 Mpixel, got 60000 x 60000"):
        decode_plain(data[: start + 5] + size + data[start + 9 :])
    progressive = jpeg("RGB", 64, 64, progressive=True)
    monkeypatch.setattr(image_limits, "_MAX_SCANNED", 64 * 64 * 3)
    with pytest.raises(ImageError, match="wanted at most 3 scans"):
        decode_plain(progressive)


KINDS = [
    jpeg("RGB", 40, 40, subsampling=subsampling, progressive=progressive)
    for subsampling, progressive in itertools.product(("4:4:4", "4:2:0"), (False, True))
] + [jpeg("L", 40, 40), jpeg("RGB", 40, 40, restart_marker_blocks=1)]


@settings(max_examples=600, deadline=None)
@given(
    kind=st.integers(0, len(KINDS) - 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    end=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damage_gives_what_pillow_gives(
    kind: int, changes: list[tuple[float, int]], end: float
) -> None:
    data = bytearray(KINDS[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    damaged = bytes(data[: int(end * len(data))])
    try:
        wanted = by_pillow(damaged)
    except ImageError:
        # Pillow reads notes that libjpeg-turbo leaves aside, and may stumble over them.
        return
    np.testing.assert_array_equal(images.decode(damaged), wanted)
