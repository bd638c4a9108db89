# SPDX-License-Identifier: Apache-2.0
"""Hostile image files: a name, what is wrong with it in words, and its bytes."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

# A file name, what it is in words, its bytes.
HostileFile = tuple[str, str, bytes]
SIDE = 60_000


@functools.cache
def picture(mode: str = "RGB", size: int = 112) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC).convert(mode)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture() if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + end


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """A little-endian TIFF with one directory: number, type, count and value of each tag."""
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + bytes(4) + data


def webp(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments after its start."""
    data = encoded("JPEG")
    added = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content
        for marker, content in segments
    )
    return data[:2] + added + data[2:]


def scans(size: int, times: int) -> bytes:
    """A grey progressive JPEG whose last scan, some bytes of no detail, comes again and again."""
    data = encoded("JPEG", Image.new("L", (size, size), 128), progressive=True)
    last, end = data.rindex(b"\xff\xc4"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * times + data[end:]


def animation(kind: str, **options: Any) -> bytes:
    rest = [Image.new("RGB", (112, 112), (c, 0, 0)) for c in (100, 0)]
    return encoded(kind, save_all=True, append_images=rest, **options)


def patched(data: bytes, before: bytes, *values: tuple[int, bytes]) -> bytes:
    """Other bytes at places counted from where ``before`` stands."""
    changed = bytearray(data)
    for place, value in values:
        start = data.index(before) + place
        changed[start : start + len(value)] = value
    return bytes(changed)


def _ordinary() -> Iterator[HostileFile]:
    """Files that are odd, and images all the same."""
    yield "wrong_extension.png", "a JPEG that is called PNG", encoded("JPEG")
    yield "no_extension", "an image without a suffix", encoded("PNG")
    yield "animated.gif", "an animated GIF: its first frame", animation("GIF")
    yield "animated.webp", "an animated WebP: its first frame", animation("WEBP")
    yield "animated.png", "an animated PNG: its first frame", animation("PNG")
    yield "pages.tif", "a TIFF of several pages: the first", animation("TIFF")
    yield "cmyk.jpg", "CMYK", encoded("JPEG", picture("CMYK"))
    yield "palette.png", "a palette", encoded("PNG", picture("P"))
    yield "bilevel.png", "one bit per pixel", encoded("PNG", picture("1"))
    yield "alpha.png", "an alpha channel", encoded("PNG", picture("RGBA"))
    grey = np.asarray(picture("L")).astype(np.uint16) * 257
    yield "grey16.png", "16 bits of grey", encoded("PNG", Image.fromarray(grey))
    deep = np.asarray(picture()).astype(">u2") * 257
    lines = b"".join(b"\0" + line.tobytes() for line in deep)
    colour16 = png(112, 112, chunk(b"IDAT", zlib.compress(lines)), depth=16)
    yield "colour16.png", "16 bits of each colour", colour16
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rotated.jpg", "rotated by its EXIF", encoded("JPEG", exif=exif)
    yield "one_pixel.png", "1 x 1 pixel", encoded("PNG", picture(size=1))
    yield "line.png", "20000 x 1 pixels", encoded("PNG", Image.new("RGB", (20_000, 1)))
    yield "latin\udce9.png", "a name that is not UTF-8", encoded("PNG")
    yield "line\nbreak.png", "a name with a line break", encoded("PNG")
    yield "tab\t\x1b[31m.png", "a name with control characters", encoded("PNG")
    yield "' OR 1=1; --.png", "a name with quotes", encoded("PNG")


def _broken() -> Iterator[HostileFile]:
    yield "zero_bytes.jpg", "an empty file", b""
    yield "text.jpg", "text", b"no image\n"
    yield "script.eps", "a PostScript program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    yield "vector.svg", "an SVG with an entity bomb", b"<!DOCTYPE s [<!ENTITY a 'aaa'>]><svg/>"
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"):
        data = encoded(kind, noise)
        yield f"truncated.{kind.lower()}", f"a {kind} cut in half", data[: len(data) // 2]
    yield "headless.jpg", "a JPEG without its first bytes", encoded("JPEG")[20:]
    yield "float.tif", "pixels of 32-bit floats", encoded("TIFF", picture("F"))
    yield "zero_wide.png", "0 x 5 pixels", png(0, 5)


def _bombs() -> Iterator[HostileFile]:
    """Small files that promise many pixels."""
    big, little = struct.pack(">II", SIDE, SIDE), struct.pack("<II", SIDE, SIDE)
    short = struct.pack(">HH", SIDE, SIDE)
    words = f"{SIDE} x {SIDE} by the header of a"
    yield "bomb.png", f"{words} PNG", png(SIDE, SIDE)
    start = encoded("JPEG")
    frame = b"\xff\xc0"
    yield "bomb.jpg", f"{words} JPEG", patched(start, frame, (5, short))
    small = struct.pack("<HH", SIDE, SIDE)
    yield "bomb.gif", f"{words} GIF", patched(encoded("GIF"), b"GIF8", (6, small))
    gif = encoded("GIF", picture("P"))
    where = gif.index(b"\x2c\0\0\0\0")
    yield "frame_bomb.gif", f"{words} GIF's frame", gif[: where + 5] + small + gif[where + 9 :]
    yield "bomb.bmp", f"{words} BMP", patched(encoded("BMP"), b"BM", (18, little))
    uncompressed = ((256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 8), (259, 3, 1, 1))
    grey = ((262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, SIDE), (279, 4, 1, 9))
    yield "bomb.tif", f"{words} TIFF", tiff(*uncompressed, *grey)
    j2k = encoded("JPEG2000")
    yield "bomb.jp2", f"{words} JPEG 2000", patched(j2k, b"ihdr", (4, big))
    inner = patched(j2k, b"\xff\x51", (6, big), (22, big))
    yield "inner_bomb.jp2", f"{words} JPEG 2000's stream, behind a small one", inner
    yield "bomb.ppm", f"{words} PPM", b"P6\n%d %d\n255\n" % (SIDE, SIDE)
    canvas = bytes(4) + (SIDE - 1).to_bytes(3, "little") * 2
    yield "bomb.webp", f"{words} WebP", webp(b"VP8X", canvas)
    lossless = b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(20)
    yield (
        "lossless_bomb.webp",
        "16383 x 16383 by the header of a lossless WebP",
        webp(b"VP8L", lossless),
    )
    anim = animation("WEBP")
    grown = patched(anim, b"VP8X", (12, (SIDE - 1).to_bytes(3, "little") * 2))
    yield "animated_bomb.webp", f"{words} WebP animation", grown
    black = Image.new("1", (8000, 8000))
    for i in range(4):
        yield f"black{i}.png", "8000 x 8000 pixels in 8 KB: within the limit", encoded("PNG", black)


def _notes() -> Iterator[HostileFile]:
    """Files whose metadata are the attack."""
    full = b"x" * 65_533
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(60_000)
    yield "exif.jpg", "200 EXIF blocks of 60 KB", jpeg_with(*[(0xE1, exif)] * 200)
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIII", 0x8769, 4, 1, 8, 8)
    yield "exif_loop.jpg", "an EXIF directory that contains itself", jpeg_with((0xE1, loop))
    count = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 0x0112, 4, 2**32 - 1, 8)
    yield "exif_count.jpg", "an EXIF tag of 2^32 values", jpeg_with((0xE1, count))
    icc = [(0xE2, b"ICC_PROFILE\0" + bytes([i, 255]) + full[:65_000]) for i in range(1, 255)]
    yield "icc.jpg", "an ICC profile of 16 MB", jpeg_with(*icc)
    yield "comments.jpg", "400 comments of 64 KB", jpeg_with(*[(0xFE, full)] * 400)
    bomb = zlib.compress(bytes(40_000_000), 6)
    text = chunk(b"zTXt", b"Comment\0\0" + bomb)
    yield "ztxt.png", "a compressed comment of 40 MB", _with_chunk(text)
    profile = chunk(b"iCCP", b"icc\0\0" + bomb)
    yield "iccp.png", "a compressed colour profile of 40 MB", _with_chunk(profile)
    many = chunk(b"tEXt", b"k\0" + b"x" * 100_000) * 300
    yield "texts.png", "300 comments of 100 KB", _with_chunk(many)
    length = struct.pack(">I", 2**31 - 1) + b"IDAT"
    yield "idat.png", "a chunk of 2 GiB by its length", encoded("PNG")[:33] + length + bytes(99)
    unpacked = chunk(b"IDAT", zlib.compress(bytes(40_000_000), 6))
    yield "long_idat.png", "40 MB of pixels for 112 x 112", png(112, 112, unpacked)
    yield "scans.jpg", "20,000 scans in a JPEG of 2048 x 2048", scans(2048, 20_000)


def _tags() -> Iterator[HostileFile]:
    """TIFF directories."""
    size = ((256, 4, 1, 112), (257, 4, 1, 112), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))
    none, packed = (259, 3, 1, 1), (259, 3, 1, 8)
    rows = (278, 4, 1, 112)
    most = 2**32 - 1
    offsets = (273, 4, most, 8)
    yield "strips.tif", "2^32 strips", tiff(*size, none, rows, offsets, (279, 4, most, 8))
    huge = (*size, none, rows, (273, 4, 1, 8), (279, 4, 1, most))
    yield "strip_size.tif", "a strip of 4 GiB", tiff(*huge)
    deflated = (*size, packed, (278, 4, 1, most), (273, 4, 1, 8), (279, 4, 1, most))
    yield "deflated.tif", "a packed strip of 4 GiB with 2^32 rows", tiff(*deflated)
    tile = ((322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 8), (325, 4, 1, 99))
    yield "tiles.tif", "tiles of 2^30 x 2^30", tiff(*size, packed, *tile)
    samples = tuple(tag for tag in size if tag[0] != 277)
    yield "samples.tif", "65535 samples in a pixel", tiff(*samples, none, rows, (277, 3, 1, 65535))
    note = (270, 2, 2**31, 8)
    yield "note.tif", "a description of 2 GiB", tiff(*size, none, rows, (273, 4, 1, 8), note)
    itself = tiff(*size, none, rows, (273, 4, 1, 8), (279, 4, 1, 9), (330, 4, 1, 8))
    yield "loop.tif", "a directory that is its own successor", itself[:-4] + struct.pack("<I", 8)
    yield "many.tif", "65535 tags in a file of 200 bytes", b"II*\0\x08\0\0\0\xff\xff" + bytes(190)


def _with_chunk(added: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + added + data[33:]


def hostile_images() -> list[HostileFile]:
    """All of them, in the order of the page."""
    groups = (_ordinary(), _broken(), _bombs(), _notes(), _tags())
    return [file for group in groups for file in group]
