# SPDX-License-Identifier: Apache-2.0
"""Patterns that no shell has expanded, such as ``'shards/*.tar'`` in quotes."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.containers import opener_of
from fiqa_fast.gallery.sources.folder import FolderSource
from fiqa_fast.gallery.sources.item import Item, Opening, Source, failing_item, file_item
from fiqa_fast.gallery.text import printable

__all__ = ["GlobSource", "base_of", "is_pattern", "open_pattern"]


def is_pattern(path: str) -> bool:
    """Whether a path is meant as a pattern: it holds a wildcard, and no file is called that."""
    return any(c in path for c in "*?[") and "\0" not in path and not os.path.lexists(path)


def base_of(pattern: str) -> str:
    """Return the folder that a pattern starts from: its path before the first wildcard."""
    return _split(pattern)[0]


def _split(pattern: str) -> tuple[str, tuple[str, ...]]:
    parts = pattern.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    base = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    return base, tuple(part for part in parts[first:] if part)


@dataclass
class GlobSource(FolderSource):
    """What a pattern matches, keyed as the folder before its first wildcard would key it.

    ``**`` stands for any number of folders. A folder that matches counts with all that is in
    it, a container with its images, whose keys begin with the container's. So the keys do not
    depend on how many files match.
    """

    pattern: tuple[str, ...] = ()
    root: str | None = None
    damage: list[str] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[Item]:
        """Walk the folder; containers are opened as they come."""
        for piece in self.pieces():
            if isinstance(piece, Item):
                yield piece
            else:
                yield from piece

    def pieces(self) -> Iterator[Item | Source]:
        """Yield images and containers as they match."""
        self.damage = []
        passed = 0
        for source in self._sources():
            yield source
            if not isinstance(source, Item):
                passed += getattr(source, "skipped", 0)
                self.damage += getattr(source, "damage", [])
        self.skipped += passed

    def count(self) -> int | None:
        """Count what matches, as far as containers know."""
        total = 0
        for source in self._sources():
            here = 1 if isinstance(source, Item) else source.count()
            if here is None:
                return None
            total += here
        return total

    def _sources(self) -> Iterator[Item | Source]:
        for entry in self.walk():
            if isinstance(entry, Item):
                yield entry
                continue
            key, path = entry
            opener = opener_of(path)
            if opener is None:
                yield file_item(key, path)
                continue
            try:
                yield opener(path, Opening(key + "/", self.root, self.ext, self.exclude))
            except (InputError, ImageError, OSError) as error:
                yield _Unopened(key, str(error))

    def enters(self, key: str) -> bool:
        """Whether something below this folder may match."""
        return _matches(key[len(self.prefix) :].rstrip("/").split("/"), self.pattern, partly=True)

    def wants(self, key: str, name: str) -> bool:
        """Whether the file matches, or is below a folder that does."""
        if not _matches(key[len(self.prefix) :].split("/"), self.pattern):
            return False
        return super().wants(key, name) or opener_of(name) is not None


@dataclass
class _Unopened:
    """A container that cannot be opened: one still, so that no share gets another's."""

    key: str
    reason: str
    damage: list[str] = field(default_factory=list, init=False)

    @property
    def prefix(self) -> str:
        return self.key + "/"

    def __iter__(self) -> Iterator[Item]:
        self.damage = [self.reason]
        yield failing_item(self.key, ImageError(self.reason))

    def pieces(self) -> Iterator[Item | Source]:
        yield self

    def count(self) -> int:
        return 1


def _matches(path: Sequence[str], pattern: Sequence[str], partly: bool = False) -> bool:
    """Whether a pattern matches a path or the start of one; partly: could match what is below."""
    states = {0}  # how much of the pattern may have been used
    for name in path:
        after = set()
        for state in _open_ended(states, pattern):
            if state == len(pattern):
                return True
            if pattern[state] == "**":
                after.add(state)
            elif fnmatch.fnmatchcase(name, printable(pattern[state])):
                after.add(state + 1)
        states = after
    states = _open_ended(states, pattern)
    return bool(states) if partly else len(pattern) in states


def _open_ended(states: set[int], pattern: Sequence[str]) -> set[int]:
    """Add what is reached where ``**`` stands for no folder at all."""
    states = set(states)
    for state in sorted(states):
        while state < len(pattern) and pattern[state] == "**":
            state += 1
            states.add(state)
    return states


def open_pattern(pattern: str, opening: Opening) -> GlobSource:
    """Open a pattern, which has to match something."""
    base, parts = _split(pattern)
    source = GlobSource(base, opening.prefix, opening.ext, opening.exclude, parts, opening.root)
    if next(source.walk(), None) is None:
        raise InputError(f"{printable(pattern)}: no file matches this pattern")
    return source
