# SPDX-License-Identifier: Apache-2.0
"""Tar archives, WebDataset's among them: from a file, gzip or not, or from standard input."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import (
    Container,
    DamagedError,
    Entry,
    RandomFile,
    fails,
    is_sidecar,
)
from fiqa_fast.gallery.sources.item import Opening
from fiqa_fast.gallery.sources.keys import member_key
from fiqa_fast.gallery.sources.tar_headers import BLOCK, is_header, read_members
from fiqa_fast.gallery.sources.tar_tapes import FileTape, StreamTape, Tape
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe, open_regular

__all__ = ["StandardInput", "TarSource", "open_tar"]

_GZIP = b"\x1f\x8b"


class TarSource(Container):
    """Keys are the members' names. Links, devices and members that are no images are left out."""

    def _tape(self) -> Tape:
        with open_regular(self.path) as file:
            zipped = file.read(2) == _GZIP
        if zipped:
            return StreamTape(cast(BinaryIO, gzip.GzipFile(self.path)))
        return FileTape(RandomFile(self.path))

    def _entries(self) -> Iterator[Entry]:
        tape = self._tape()
        for member in read_members(tape.read, tape.skip):
            head, opener = tape.take(member.size)
            tape.skip(-member.size % BLOCK)
            key = member_key(os.fsdecode(member.name))
            if member.kind == b"5" or member.name.endswith(b"/"):
                continue  # a folder
            if not member.regular or is_sidecar(key, head, self.opening.ext):
                self.skipped += 1
            elif member.sparse:
                yield key, fails("wanted a plain file, got a sparse one")
            else:
                yield key, opener


class StandardInput(TarSource):
    """An archive from standard input, which can be read once."""

    def __init__(self, opening: Opening) -> None:
        super().__init__("standard input", opening)
        stream = StreamTape(sys.stdin.buffer)
        if stream.peek(2) == _GZIP:
            stream = StreamTape(cast(BinaryIO, gzip.GzipFile(fileobj=cast(BinaryIO, stream))))
        _check(self.path, stream.peek)
        self._once: StreamTape | None = stream

    def _tape(self) -> Tape:
        if self._once is None:
            raise InputError("standard input can be read once only; store it in a file")
        tape, self._once = self._once, None
        return tape


def _check(name: str, read: Callable[[int], bytes]) -> None:
    """Raise :class:`InputError` for what does not begin as an archive does."""
    try:
        block = read(BLOCK)
    except (DamagedError, OSError) as error:
        raise InputError(f"{name}: {describe(error)}") from error
    if not is_header(block) and (block.strip(b"\0") or not block):
        raise InputError(f"{name}: wanted a tar archive, got something else")


def open_tar(path: str, opening: Opening) -> TarSource:
    """Open an archive, which has to begin as one."""
    source = TarSource(path, opening)
    _check(printable(path), source._tape().read)
    return source
