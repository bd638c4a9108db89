# SPDX-License-Identifier: Apache-2.0
"""Patterns that no shell has expanded: ``'shards/*.tar'`` in quotes, ``'{00..99}.tar'``."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.braces import expand, has_braces
from fiqa_fast.gallery.sources.containers import opener_of
from fiqa_fast.gallery.sources.folder import FolderSource
from fiqa_fast.gallery.sources.item import Item, Opening, Source, failing_item, file_item
from fiqa_fast.gallery.sources.keys import Distinct
from fiqa_fast.gallery.text import printable
from fiqa_fast.images import describe

__all__ = ["BracedSource", "GlobSource", "base_of", "is_pattern", "open_pattern"]


def is_pattern(path: str) -> bool:
    """Whether a path is meant as a pattern: it holds a wildcard, and no file is called that."""
    meant = _has_wildcard(path) or has_braces(path)
    return meant and "\0" not in path and not os.path.lexists(path)


def _has_wildcard(text: str) -> bool:
    return any(c in text for c in "*?[")


def base_of(pattern: str) -> str:
    """Return the folder that a pattern starts from: its path before the first wildcard or brace."""
    return _split(pattern)[0]


def _split(pattern: str) -> tuple[str, tuple[str, ...]]:
    parts = pattern.split("/")
    starts = "*?[{" if has_braces(pattern) else "*?["
    first = next((i for i, part in enumerate(parts) if any(c in part for c in starts)), len(parts))
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
    every: int = 1
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
                yield opener(
                    path, Opening(key + "/", self.root, self.ext, self.exclude, self.every)
                )
            except InputError as error:
                yield _Unopened(key, str(error), str(error))
            except (ImageError, OSError) as error:
                reason = describe(error)
                yield _Unopened(key, reason, f"{printable(path)}: {reason}")

    def enters(self, key: str) -> bool:
        """Whether something below this folder may match."""
        return _matches(key[len(self.prefix) :].rstrip("/").split("/"), self.pattern, partly=True)

    def wants(self, key: str, name: str) -> bool:
        """Whether the file matches, or is below a folder that does."""
        if not _matches(key[len(self.prefix) :].split("/"), self.pattern):
            return False
        return super().wants(key, name) or opener_of(name) is not None


@dataclass
class BracedSource(GlobSource):
    """The same for several patterns; a name without a wildcard that is not there is damage."""

    names: tuple[str, ...] = ()

    def walk(self) -> Iterator[Item | tuple[str, str]]:
        """Yield what is called so or matches, in the order of the names."""
        self.skipped = 0
        distinct = Distinct()  # two of the patterns may match one file
        for name in self.names:
            path = os.path.join(self.folder, name)
            if not (_has_wildcard(name) or os.path.lexists(path) or opener_of(path)):
                self.damage.append(f"{printable(path)}: no such file")
                missing = ImageError("no such file")
                yield failing_item(distinct(self.prefix + printable(name)), missing)
                continue
            if os.path.realpath(path) in self.exclude:
                continue
            parts = tuple(part for part in name.split("/") if part)
            whole = GlobSource(self.folder, self.prefix, self.ext, self.exclude, parts, self.root)
            # Thousands of names must not be thousands of walks.
            plain = not _has_wildcard(name) and (opener_of(path) or not os.path.isdir(path))
            key = self.prefix + "/".join(map(printable, parts))
            for entry in [(key, path)] if plain else whole.walk():
                if isinstance(entry, Item):
                    yield Item(distinct(entry.key), entry.open)
                else:
                    yield distinct(entry[0]), entry[1]
            self.skipped += whole.skipped


@dataclass
class _Unopened:
    """A container that cannot be opened: one still, so that no share gets another's."""

    key: str
    reason: str
    line: str  # the same with its path
    damage: list[str] = field(default_factory=list, init=False)

    @property
    def prefix(self) -> str:
        return self.key + "/"

    def __iter__(self) -> Iterator[Item]:
        self.damage = [self.line]
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
    rest = "/".join(parts)
    common = (base, opening.prefix, opening.ext, opening.exclude)
    if has_braces(rest):
        source: GlobSource = BracedSource(
            *common, (), opening.root, opening.every, tuple(expand(rest))
        )
        found = any(
            not isinstance(entry, Item) and os.path.lexists(entry[1]) for entry in source.walk()
        )
    else:
        source = GlobSource(*common, parts, opening.root, opening.every)
        found = next(source.walk(), None) is not None
    if not found:
        raise InputError(f"{printable(pattern)}: no file matches this pattern")
    return source
