# SPDX-License-Identifier: Apache-2.0
"""Where images come from: folders, single files and list files.

A source yields :class:`Item` in a fixed order and never opens one itself. To add a container,
write a class with the members of :class:`Source` and name its suffix in ``_BY_SUFFIX``.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.images import describe, open_regular

__all__ = ["FileSource", "FolderSource", "Item", "ListSource", "Source", "open_sources"]

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be: its key in the table, and a way to open its encoded bytes.

    ``open`` may raise ``ImageError`` or ``OSError``; the image then becomes a row with that text.
    """

    key: str
    open: Callable[[], BinaryIO]


class Source(Protocol):
    """Items in a fixed order; may be iterated more than once."""

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order."""
        ...

    def count(self) -> int:
        """Return how many items there are now (for progress; files may come and go)."""
        ...


def printable(name: str) -> str:
    """Return a file name as text that every table can hold: bytes that are not UTF-8 escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text.replace("\0", "\\x00")


def _file_item(key: str, path: str) -> Item:
    return Item(key, lambda: open_regular(path))


def _failing_item(key: str, error: OSError) -> Item:
    def fail() -> BinaryIO:
        raise OSError(error.errno, f"cannot list this folder: {describe(error)}")

    return Item(key, fail)


@dataclass
class FolderSource:
    """Every regular file below a folder that is not hidden, sorted by name within each folder.

    Links to files count, links to folders are not followed (they may form loops); pipes, sockets
    and devices are passed over and never opened. A link that leads nowhere and a folder that
    cannot be listed are items that fail when opened, so that nothing is lost silently.
    """

    folder: str
    prefix: str = ""
    ext: frozenset[str] | None = None  # lower case, without the dot
    exclude: frozenset[str] = frozenset()  # the output files, as real paths
    skipped: int = field(default=0, init=False)  # of the last iteration

    def __iter__(self) -> Iterator[Item]:
        """Walk the tree; memory holds the names of one branch only."""
        self.skipped = 0
        stack = [self._entries(self.folder, self.prefix)]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, Item):
                yield entry
            else:
                stack.append(self._entries(*entry))

    def count(self) -> int:
        """Count by walking the tree."""
        return sum(1 for _ in self)

    def _entries(self, folder: str, prefix: str) -> Iterator[Item | tuple[str, str]]:
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield _failing_item(prefix or printable(folder), error)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            kind = _kind(entry)
            key = prefix + printable(entry.name)
            if kind == "folder":
                yield entry.path, key + "/"
            elif kind == "other":
                self.skipped += 1
            elif self._wanted(entry):
                yield _file_item(key, entry.path)

    def _wanted(self, entry: os.DirEntry[str]) -> bool:
        if self.ext is not None:
            suffix = os.path.splitext(entry.name)[1][1:].lower()
            if suffix not in self.ext:
                return False
        named_alike = any(entry.name == os.path.basename(path) for path in self.exclude)
        if not named_alike and not (self.exclude and entry.is_symlink()):
            return True
        return os.path.realpath(entry.path) not in self.exclude


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "file", "folder" or "other"; a link that leads nowhere is a file that fails."""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "file"
    return "file" if stat.S_ISREG(mode) else "other"


@dataclass
class FileSource:
    """One image file."""

    path: str
    key: str

    def __iter__(self) -> Iterator[Item]:
        """Yield the file."""
        yield _file_item(self.key, self.path)

    def count(self) -> int:
        """Return 1."""
        return 1


@dataclass
class ListSource:
    """The paths of a text file, one per line as written, in its order; blank lines are skipped.

    Relative paths start at ``root``. CRLF line ends and a UTF-8 byte order mark are tolerated.
    """

    path: str
    root: str
    prefix: str = ""

    def __iter__(self) -> Iterator[Item]:
        """Read the list line by line."""
        for name in self._names():
            yield _file_item(self.prefix + printable(name), os.path.join(self.root, name))

    def count(self) -> int:
        """Count the lines that are not blank."""
        return sum(1 for _ in self._names())

    def _names(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            start = file.read(3)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{self.path}: wanted a list in UTF-8, got UTF-16; convert it")
            if start != b"\xef\xbb\xbf":
                file.seek(0)
            for line in file:
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if line.strip():
                    yield os.fsdecode(line)


def _open_list(path: str, root: str | None, prefix: str) -> Source:
    return ListSource(path, root if root is not None else os.path.dirname(path), prefix)


# Containers by suffix: (path, root, prefix of the keys) -> source.
_BY_SUFFIX: dict[str, Callable[[str, str | None, str], Source]] = {".txt": _open_list}


def open_sources(
    inputs: Sequence[StrPath],
    root: StrPath | None = None,
    ext: Sequence[str] | None = None,
    exclude: StrPath | Sequence[StrPath] | None = None,
) -> list[Source]:
    """Open folders, image files and list files (``.txt``) in the order given.

    ``root`` is where the relative paths of list files start (default: the list's own folder),
    ``ext`` narrows folders to these suffixes, ``exclude`` is what to pass over in folders: the
    output of the run, or several. Keys are relative to a folder, the name of a file, or a line of
    a list as written; with several inputs, they start with the input's name, or with the input as
    written where two inputs have the same name.

    Raises :class:`InputError` for an input that is missing, unreadable, named twice, an output
    too, or no file or folder, for a root that is no folder, and where there is nothing to
    score at all.
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
    names = _names(paths)
    sources = [
        _open(
            path, name, len(paths) > 1, None if root is None else os.fspath(root), suffixes, hidden
        )
        for path, name in zip(paths, names, strict=True)
    ]
    if not any(True for source in sources for _ in source):
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
    twice = next((path for path, times in Counter(paths).items() if times > 1), None)
    if twice is not None:
        raise InputError(f"{printable(twice)}: this input is named twice")
    basenames = [os.path.basename(os.path.abspath(path)) or path for path in paths]
    times = Counter(basenames)
    return [
        name if times[name] == 1 else path.rstrip("/") or path
        for path, name in zip(paths, basenames, strict=True)
    ]


def _open(
    path: str,
    name: str,
    several: bool,
    root: str | None,
    ext: frozenset[str] | None,
    exclude: frozenset[str],
) -> Source:
    prefix = printable(name) + "/" if several else ""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(path)}: {describe(error)}") from error
    if stat.S_ISDIR(mode):
        _check_readable(lambda: os.scandir(path), path)
        return FolderSource(path, prefix, ext, exclude)
    if not stat.S_ISREG(mode):
        raise InputError(f"{printable(path)}: wanted a folder or a file, got a pipe or a device")
    container = _BY_SUFFIX.get(os.path.splitext(path)[1].lower())
    if container is None:
        return FileSource(path, printable(name))
    _check_readable(lambda: open_regular(path), path)
    return container(path, root, prefix)


def _check_readable(opener: Callable[[], AbstractContextManager[object]], path: str) -> None:
    try:
        with opener():
            pass
    except (OSError, ImageError) as error:
        raise InputError(f"{printable(path)}: {describe(error)}") from error
