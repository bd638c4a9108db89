# SPDX-License-Identifier: Apache-2.0
"""From what a user names to sources."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.containers import opener_of
from fiqa_fast.gallery.sources.folder import FileSource, FolderSource
from fiqa_fast.gallery.sources.globbed import base_of, is_pattern, open_pattern
from fiqa_fast.gallery.sources.item import Opening, Source
from fiqa_fast.gallery.sources.tar import StandardInput
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe

__all__ = ["open_sources"]

StrPath = str | os.PathLike[str]

_STANDARD_INPUT = ("-", "/dev/stdin")


def open_sources(
    inputs: Sequence[StrPath],
    root: StrPath | None = None,
    ext: Sequence[str] | None = None,
    exclude: StrPath | Sequence[StrPath] | None = None,
    every: int = 1,
) -> list[Source]:
    """Open folders, image files, list files, containers and patterns in the order given.

    A container is known by its suffix (``.bin``, ``.rec``, ``.tar``, ``.tar.gz``, ``.zip``,
    ``.lmdb``, ``.parquet``, ``.arrow`` and some more), an LMDB folder by its file; ``-`` is a tar
    archive from standard input. A name with a wildcard or braces that is no file is a pattern.

    ``root`` is where the relative paths of list files start (default: the list's own folder),
    ``ext`` narrows folders, patterns and archives to these suffixes, ``exclude`` is what to pass
    over in folders: the output of the run, or several; of videos every ``every``-th frame counts,
    from the first. Keys are relative to a folder, the name of
    a file, a line of a list as written, or what a container calls its images; with several
    inputs, they start with the input's name, or with the input as written where two inputs have
    the same name. No key comes twice: a second one of a list or container gets ``#2``.

    Raises :class:`InputError` for an input that is missing, unreadable, named twice, an output
    too, no file or folder, or not what its suffix says, for a root that is no folder, and where
    there is nothing to score at all.
    """
    paths = [os.fspath(path) for path in inputs]
    if not paths:
        raise InputError("wanted at least one folder, image file or list file, got none")
    if root is not None and not os.path.isdir(root):
        raise InputError(f"--root: wanted a folder, got {printable(os.fspath(root))}")
    suffixes = _suffixes(ext)
    outputs = [exclude] if isinstance(exclude, (str, os.PathLike)) else exclude or ()
    hidden = frozenset(os.path.realpath(output) for output in outputs)
    for path in paths:
        if hidden and os.path.realpath(path) in hidden:
            raise InputError(f"{printable(path)}: this is the output too, and would be overwritten")
    start = None if root is None else os.fspath(root)
    sources = []
    for path, name in zip(paths, _names(paths), strict=True):
        prefix = printable(name) + "/" if len(paths) > 1 else ""
        sources.append(_open(path, name, Opening(prefix, start, suffixes, hidden, every)))
    if not any(isinstance(source, StandardInput) for source in sources) and not any(
        True for source in sources for _ in source
    ):
        narrowed = f" with the suffix {', '.join(sorted(suffixes))}" if suffixes else ""
        raise InputError(f"no image{narrowed} found in {', '.join(map(printable, paths[:5]))}")
    return sources


def _suffixes(ext: Sequence[str] | None) -> frozenset[str] | None:
    if ext is None:
        return None
    suffixes = frozenset(name.strip().lstrip(".").lower() for name in ext) - {""}
    if not suffixes:
        raise InputError("--ext: wanted suffixes such as jpg,png, got none")
    return suffixes


def _names(paths: Sequence[str]) -> list[str]:
    """Return what to call each input: its basename, or itself where that is not unique."""
    basenames = [_basename(path) for path in paths]
    times = Counter(basenames)
    names = [
        name if times[name] == 1 else path.rstrip("/") or path
        for path, name in zip(paths, basenames, strict=True)
    ]
    for values in (paths, names):
        twice = next((value for value, times in Counter(values).items() if times > 1), None)
        if twice is not None:
            raise InputError(f"{printable(twice)}: this input is named twice")
    outer = (
        {name for name in names if any(other.startswith(name + "/") for other in names)}
        if max(times.values()) > 1
        else None
    )
    if outer:
        raise InputError(f"{printable(min(outer))}: another input is below it; name one of them")
    return names


def _basename(path: str) -> str:
    if path in _STANDARD_INPUT:
        return "stdin"
    if is_pattern(path):
        path = base_of(path)
    return os.path.basename(os.path.abspath(path)) or path


def _open(path: str, name: str, opening: Opening) -> Source:
    if path in _STANDARD_INPUT:
        return StandardInput(opening)
    if is_pattern(path):
        return open_pattern(path, opening)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise ImageError("wanted a folder or a file, got a pipe or a device")
        container = opener_of(path)
        if container is not None:
            return container(path, opening)
        if stat.S_ISREG(mode):
            return FileSource(path, printable(name))
        os.scandir(path).close()
        return FolderSource(path, opening.prefix, opening.ext, opening.exclude)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{printable(path)}: {describe(error)}") from error
