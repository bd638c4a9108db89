# SPDX-License-Identifier: Apache-2.0
"""Image files: those of a folder, or a single one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from fiqa_fast.gallery.sources.item import Item, Source, failing_item, file_item
from fiqa_fast.gallery.sources.keys import Distinct
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe

__all__ = ["FileSource", "FolderSource"]


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
    exclude: frozenset[str] = frozenset()  # the output's files and folder, as real paths
    skipped: int = field(default=0, init=False)  # of the last iteration

    def __iter__(self) -> Iterator[Item]:
        """Walk the tree; memory holds the names of one branch only."""
        return (entry if isinstance(entry, Item) else file_item(*entry) for entry in self.walk())

    def pieces(self) -> Iterator[Item | Source]:
        """Yield the images."""
        return iter(self)

    def walk(self) -> Iterator[Item | tuple[str, str]]:
        """Yield the key and path of each file, or an item that fails."""
        self.skipped = 0
        stack = [self._entries(self.folder, self.prefix)]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, Item):
                yield entry
            else:
                key, path = entry
                if key.endswith("/"):
                    stack.append(self._entries(path, key))
                else:
                    yield entry

    def count(self) -> int | None:
        """Count by walking the tree."""
        return sum(1 for _ in self.walk())

    def enters(self, key: str) -> bool:
        """Whether to look into the folder with this key, which ends with a slash."""
        return True

    def wants(self, key: str, name: str) -> bool:
        """Whether the file with this key and name counts."""
        return self.ext is None or os.path.splitext(name)[1][1:].lower() in self.ext

    def _entries(self, folder: str, prefix: str) -> Iterator[Item | tuple[str, str]]:
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield failing_item(
                prefix or printable(folder),
                OSError(error.errno, f"cannot list this folder: {describe(error)}"),
            )
            return
        distinct = Distinct()  # two names may look alike once their bytes are escaped
        for entry in entries:
            if entry.name.startswith("."):
                continue
            kind = _kind(entry)
            name = printable(entry.name)
            key = prefix + (distinct(name) if "\\" in name else name)
            if kind == "folder":
                if self.enters(key + "/") and not self._excluded(entry):
                    yield key + "/", entry.path
            elif kind == "other":
                self.skipped += 1
            elif self.wants(key, entry.name) and not self._excluded(entry):
                yield key, entry.path

    def _excluded(self, entry: os.DirEntry[str]) -> bool:
        named_alike = any(entry.name == os.path.basename(path) for path in self.exclude)
        if not named_alike and not (self.exclude and entry.is_symlink()):
            return False
        return os.path.realpath(entry.path) in self.exclude


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
    prefix: str = ""

    def __iter__(self) -> Iterator[Item]:
        """Yield the file."""
        yield file_item(self.key, self.path)

    def pieces(self) -> Iterator[Item | Source]:
        """Yield the file."""
        return iter(self)

    def count(self) -> int:
        """Return 1."""
        return 1
