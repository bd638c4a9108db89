# SPDX-License-Identifier: Apache-2.0
"""Frames of videos, by PyAV (the extra ``fiqa_fast[video]``).

Frames are handed on as PPM, so that what decodes, resizes and refuses images sees images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import (
    Container,
    DamagedError,
    Entry,
    RandomFile,
)
from fiqa_fast.gallery.sources.item import MAX_IMAGE_BYTES, InMemory, Opening
from fiqa_fast.gallery.text import brief, printable
from fiqa_fast.images import describe, open_regular

__all__ = ["VideoSource", "open_video"]

# Others may be lists of more files, or addresses, that FFmpeg would open.
_FORMATS = "mov,matroska,avi"
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # how Matroska and WebM begin
_MAX_PIXELS = MAX_IMAGE_BYTES // 3 - 64  # as PPM


class VideoSource(Container):
    """Keys are the frames' numbers from 0, of six digits or more; those left out keep theirs."""

    def count(self) -> int | None:
        """Return how many frames the video says it has, if it does."""
        with _opened(self.path) as (_, stream):
            return -(-int(stream.frames) // self.opening.every) or None

    def _entries(self) -> Iterator[Entry]:
        with _opened(self.path) as (video, stream):
            number = packets = 0
            for packet in video.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise DamagedError(f"damaged: frame {number}")
                    if number % self.opening.every == 0:
                        yield f"{number:06d}", InMemory(_ppm(frame))
                    number += 1
            if packets < stream.frames:
                raise DamagedError(f"cut off: wanted {stream.frames} frames, got {packets}")
            if _is_cut_matroska(RandomFile(self.path)):
                raise DamagedError(f"cut off after frame {number - 1}")


def _is_cut_matroska(file: RandomFile) -> bool:
    """Whether a file of that kind is shorter than it says: FFmpeg takes its end for the end."""
    offset = 0
    while (name := file.read(offset, min(4, file.size - offset))) in (_EBML, _SEGMENT):
        head = file.read(offset + 4, min(8, file.size - offset - 4))
        length = 9 - head[0].bit_length() if head and head[0] else 0
        if not 0 < length <= len(head):
            return True
        size = int.from_bytes(head[:length], "big") & (1 << 7 * length) - 1
        offset += 4 + length + size
        if name == _SEGMENT:
            unknown = size == (1 << 7 * length) - 1  # written as it came
            return offset > file.size and not unknown
    return False


def _ppm(frame: Any) -> bytes:
    _check(frame.width, frame.height)
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)  # upright
    height, width = pixels.shape[:2]
    return b"".join((b"P6 %d %d 255\n" % (width, height), pixels.tobytes()))


def _check(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        most = _MAX_PIXELS // 2**20
        raise DamagedError(f"wanted frames of at most {most} Mpixel, got {width} x {height}")


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Open a video and its first stream of pictures; what FFmpeg raises is a DamagedError."""
    import av

    try:
        with (
            open_regular(path) as file,
            av.open(file, options={"format_whitelist": _FORMATS}) as video,
        ):
            if not video.streams.video:
                raise DamagedError("wanted a video, got a file without pictures")
            stream = video.streams.video[0]
            if stream.codec_context is None:
                raise DamagedError("wanted a codec that FFmpeg knows, got another")
            _check(stream.codec_context.width, stream.codec_context.height)
            # Errors are not to be painted over, and sizes may change on the way.
            limits = {"err_detect": "explode", "max_pixels": str(_MAX_PIXELS)}
            stream.codec_context.options = limits
            yield video, stream
    except ImageError:
        raise
    except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
        text = getattr(error, "strerror", None) or error
        raise DamagedError(f"damaged or cut off: {brief(text)}") from error


def open_video(path: str, opening: Opening) -> VideoSource:
    """Open a video, which needs the extra."""
    try:
        with _opened(path):
            return VideoSource(path, opening)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{printable(path)}: videos need PyAV; pip install 'fiqa_fast[video]'"
        ) from error
    except ImageError as error:
        raise InputError(f"{printable(path)}: no video to be read: {describe(error)}") from error
