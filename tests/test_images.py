# SPDX-License-Identifier: Apache-2.0
"""Decoding and resizing: every kind of image, and every kind of damage."""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from fiqa_fast import image_limits
from fiqa_fast.errors import ImageError
from fiqa_fast.images import (
    MAX_BYTES,
    MAX_PIXELS,
    ResizeWarning,
    decode,
    fit,
    load_image,
    resize,
    to_tensor,
)


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray[Any, Any]:
    """A smooth picture, so that lossy formats keep it."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + seed) + np.cos(y / (5 + c)) for c in range(3)]
    return np.stack([(w + 2) * 63 for w in waves], -1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels it does not have."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


LOSSLESS = ["PNG", "BMP", "TIFF", "PPM"]
LOSSY = ["JPEG", "WEBP", "JPEG2000"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_are_exact(kind: str) -> None:
    pixels = picture()
    decoded = decode(encode(Image.fromarray(pixels), kind))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_are_close_and_rgb(kind: str) -> None:
    pixels = picture(64, 64)
    pixels[..., 2] //= 4  # a swap of red and blue must show
    decoded = decode(encode(Image.fromarray(pixels), kind)).astype(int)
    assert abs(decoded - pixels).mean() < 6


def test_sources_agree(tmp_path: Path) -> None:
    data = encode(Image.fromarray(picture()), "PNG")
    path = tmp_path / "wrong extension.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path), io.BytesIO(data)):
        np.testing.assert_array_equal(decode(source), picture())


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "PA"])
def test_modes_become_what_pillow_says_they_are(mode: str) -> None:
    source = Image.fromarray(picture())
    image = source.convert("L" if mode in ("LA", "PA") else "RGB")
    image = image.convert("LA" if mode == "PA" else mode)
    kind = "TIFF" if mode in ("CMYK", "LA", "PA") else "PNG"
    expected = image if mode == "CMYK" else image.convert("RGBA")
    np.testing.assert_array_equal(decode(encode(image, kind)), np.array(expected.convert("RGB")))


def test_cmyk_jpeg_is_not_inverted() -> None:
    white = Image.new("RGB", (16, 16), (250, 250, 250)).convert("CMYK")
    assert decode(encode(white, "JPEG")).min() > 230


def test_alpha_is_dropped_not_blended() -> None:
    pixels = np.dstack([picture(), np.zeros((20, 30), np.uint8)])
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels), "PNG")), picture())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    grey = np.array([[0, 257, 128 * 257], [200 * 257, 65535, 200]], np.uint16)
    grey = np.kron(grey, np.ones((8, 8), np.uint16))
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    decoded = decode(encode(Image.fromarray(grey), kind, **options))
    expected = np.round(grey / 257).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, 2))


def test_sixteen_bit_grey_with_white_as_zero() -> None:
    grey = np.full((8, 8), 200 * 257, np.uint16)
    data = encode(Image.fromarray(grey), "TIFF")
    black_is_zero = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert data.count(black_is_zero) == 1
    white_is_zero = data.replace(black_is_zero, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    assert (decode(data) == 200).all()
    assert (decode(white_is_zero) == 55).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_defined_conversion_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=rf"wanted 8-bit colour .* got pixels of '{mode}'"):
        decode(encode(Image.new(mode, (8, 8)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = picture(16, 24)
    undo: dict[int, Callable[[Any], Any]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(stored, kind, exif=exif)), upright)


def test_damaged_exif_does_not_matter() -> None:
    data = encode(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):  # Pillow's own
        assert decode(data).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), (c, 0, 0)) for c in (200, 100, 0)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert abs(decode(data)[..., 0].astype(int) - 200).max() < 8


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY, "GIF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, keep: float) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError) as caught:
        decode(data[: int(len(data) * keep)])
    one_short_line(caught.value)


def one_short_line(error: ImageError) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 250
    assert " object at 0x" not in text


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty file"),
        (b"hello, this is no image\n", "got something else"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "got something else"),
        (b"GIF89a", "."),
        (b"\xff\xd8\xff", "."),
        (b"\x89PNG\r\n\x1a\n", "."),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "."),
        (b"P6\n-3 4\n255\n", "."),
        (b"P6\n99999999999 4\n255\n", "."),
        (b"BM" + b"\xff" * 60, "."),
        (b"II*\0\x08\0\0\0" + b"\xff" * 40, "."),
        (png_header(9000, 9000), "64 Mpixel, got 9000 x 9000"),
        (png_header(60000, 60000), "64 Mpixel"),
        (png_header(0, 5), "."),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(data: bytes, match: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=match) as caught:
            decode(data)
    one_short_line(caught.value)


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    side = int(MAX_PIXELS**0.5)
    with pytest.raises(ImageError, match="Mpixel"):
        decode(png_header(side, side + 1))
    with pytest.raises(ImageError) as caught:  # within the limit: its pixels are missed instead
        decode(png_header(side, 1))
    assert "Mpixel" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([*LOSSLESS, *LOSSY, "GIF"]),
    position=st.floats(0, 1),
    junk=st.binary(min_size=1, max_size=12),
)
def test_damage_anywhere_decodes_or_is_an_image_error(
    kind: str, position: float, junk: bytes
) -> None:
    data = bytearray(encode(Image.fromarray(picture()), kind))
    at = int(position * len(data))
    data[at : at + len(junk)] = junk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            decoded = decode(bytes(data))
        except ImageError as error:
            one_short_line(error)
        else:
            assert decoded.dtype == np.uint8
            assert decoded.ndim == 3


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "dangling", "nul"])
def test_paths_that_are_no_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a\0b" if kind == "nul" else kind)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    match = {
        "missing": "no such file",
        "folder": "wanted a file, got a folder",
        "pipe": "wanted a file, got a pipe",
        "dangling": "dangling link to .*gone",
        "nul": "null byte",
    }[kind]
    with pytest.raises(ImageError, match=match):
        decode(path)
    with pytest.raises(ImageError, match=kind if kind != "nul" else "b: "):
        load_image(path, 112)  # names the path


def test_load_image_takes_every_kind(tmp_path: Path) -> None:
    pixels = picture(112, 112)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    strided = np.asfortranarray(pixels)[:, :, :]
    for item in (path, str(path), Image.fromarray(pixels), pixels, strided):
        tensor = load_image(item, 112)
        assert tensor.dtype == torch.uint8
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), pixels)
    torch.testing.assert_close(to_tensor(pixels), load_image(pixels, 112), rtol=0, atol=0)


@pytest.mark.parametrize(
    "item",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        b"bytes",
        7,
        None,
    ],
)
def test_load_image_says_what_it_wanted_and_got(item: Any) -> None:
    with pytest.raises(ImageError, match=r"wanted .* got "):
        load_image(item, 112)


@pytest.mark.parametrize("height", [1, 2, 57, 112, 113, 200, 224])
@pytest.mark.parametrize("width", [1, 99, 112, 160])
def test_resize_is_bilinear_with_half_pixel_centres(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    images = torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)
    expected = torch.nn.functional.interpolate(
        images.double(), size=(112, 112), mode="bilinear", align_corners=False, antialias=False
    )
    resized = resize(images, 112)
    assert (resized - expected).abs().max() <= 0.50005
    # A path and a tensor of its pixels must give the same bits.
    planes = fit(images[0].permute(1, 2, 0).numpy(), 112).planes
    np.testing.assert_array_equal(planes, resized[0].numpy())


def test_resize_does_not_depend_on_the_batch() -> None:
    images = torch.randint(0, 256, (5, 3, 150, 140), dtype=torch.uint8)
    one_by_one = torch.stack([resize(image, 112) for image in images])
    assert torch.equal(resize(images, 112), one_by_one)
    assert resize(images[:0], 112).shape == (0, 3, 112, 112)


def test_a_large_reduction_warns_and_a_small_one_does_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resize(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), 112)
        load_image(picture(224, 100), 112)
    with pytest.warns(ResizeWarning, match="226 x 100.*without antialiasing"):
        load_image(picture(100, 226), 112)
    with pytest.warns(ResizeWarning, match="100 x 226"):
        resize(torch.zeros(1, 3, 226, 100, dtype=torch.uint8), 112)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 0, 8).byte()])
def test_resize_refuses_other_tensors(images: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"wanted uint8 images .* got "):
        resize(images, 112)


def test_files_too_long_for_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(picture()), "PNG"))
    os.truncate(path, MAX_BYTES)
    assert decode(path).shape == (20, 30, 3)  # what follows an image does not matter
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(ImageError, match="wanted an image of at most 32 MiB, got 33554433 bytes"):
        decode(path)


def test_jpegs_of_notes_without_end() -> None:
    data = encode(Image.fromarray(picture()), "JPEG")
    note = b"\xff\xfe\x08\x02" + bytes(2048)
    assert decode(data[:2] + note * 1000 + data[2:]).shape == (20, 30, 3)
    with pytest.raises(ImageError, match="at most 1024 segments before the pixels"):
        decode(data[:2] + note * 1100 + data[2:])


def test_jpegs_of_scans_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(picture()), "JPEG", progressive=True)
    assert data.count(b"\xff\xda") == 10
    last, end = data.rindex(b"\xff\xc4"), data.rindex(b"\xff\xd9")
    more = data[:last] + data[last:end] * 91 + data[end:]
    monkeypatch.setattr(image_limits, "_MAX_SCANNED", 100 * 20 * 30)
    assert decode(more).shape == (20, 30, 3)
    with pytest.raises(ImageError, match="at most 100 scans of that many pixels, got 101"):
        decode(data[:last] + data[last:end] * 92 + data[end:])


def test_large_images_are_decoded_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "_SMALL_IMAGE", 20 * 30 - 1)
    data = encode(Image.fromarray(picture()), "PNG")
    now, most = 0, 0
    load = ImageFile.ImageFile.load

    def counted(self: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.01)
        now -= 1
        return load(self)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, [data] * 8))
    assert most == 1
