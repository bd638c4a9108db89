# SPDX-License-Identifier: Apache-2.0
"""What of a gallery has its row already.

A run that was stopped finds, in an unchanged gallery, the rows it has at the gallery's start in
the same order: they are compared one by one, in no memory to speak of. From the first difference
on, which a changed gallery or several workers make, 16 bytes per remaining row are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import numpy as np

from fiqa_fast.gallery.sources import Item

__all__ = ["Digests", "Done"]


class Digests:
    """A set of keys by their hashes of 120 bits, and which of them were met."""

    def __init__(self, keys: Iterable[str]) -> None:
        joined = bytearray()
        for key in keys:
            joined += _digest(key)
        self.values = np.frombuffer(joined, "S16")
        self.values.sort()
        self._met = np.zeros(len(self.values), bool)

    def meet(self, key: str) -> bool:
        """Note that a key is there, and return whether the set has it."""
        place = self._find(key)
        if place < 0:
            return False
        self._met[place] = True
        return True

    def has(self, key: str) -> bool:
        """Return whether the set has a key, without noting that."""
        return self._find(key) >= 0

    def met(self, key: str) -> bool:
        """Return whether a key of the set was met."""
        return bool(self._met[self._find(key)])

    @property
    def unmet(self) -> int:
        """How many were not met."""
        return int(np.count_nonzero(~self._met))

    def _find(self, key: str) -> int:
        digest = np.bytes_(_digest(key))
        place = int(np.searchsorted(self.values, digest))
        return place if place < len(self.values) and self.values[place] == digest else -1


def _digest(key: str) -> bytes:
    # numpy's byte strings lose zeros at their end: so none stands there.
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=15).digest() + b"."


class Done:
    """Leaves out of a gallery what ``known()`` names, keys as they stand in the table.

    ``as_stored`` turns an item's key into that. Once all items have passed, ``vanished`` keys
    remain that the gallery no longer has.
    """

    def __init__(
        self, known: Callable[[], Iterator[str]], as_stored: Callable[[str], str] = str
    ) -> None:
        self._known = known
        self._as_stored = as_stored
        self._rest = known()
        self._digests: Digests | None = None
        self._behind = 0  # known keys that were compared in order
        self.examples: list[str] = []
        self.found = 0

    def digests(self) -> Digests:
        """Return all that is known, for readers who meet the items in another order."""
        return Digests(self._known())

    def leave_out(self, items: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
        """Yield the items that are not known."""
        expected = next(self._rest, None)
        for place, item in items:
            key = self._as_stored(item.key)
            if self._digests is not None:
                known = self._digests.meet(key)
            elif expected is None:
                known = False
            elif key == expected:
                known = True
                expected = next(self._rest, None)
                self._behind += 1
            else:
                self._digests = Digests(chain([expected], self._rest))
                expected = None
                known = self._digests.meet(key)
            if known:
                self.found += 1
            else:
                yield place, item
        if expected is not None:  # the gallery ended first
            self._digests = Digests(chain([expected], self._rest))

    @property
    def vanished(self) -> int:
        """How many known keys the gallery does not have."""
        return 0 if self._digests is None else self._digests.unmet

    def note_examples(self, count: int = 3) -> None:
        """Keep some keys that vanished, as long as the known ones can still be read."""
        digests = self._digests
        if digests is not None and digests.unmet:
            rest = islice(self._known(), self._behind, None)
            self.examples = list(islice((key for key in rest if not digests.met(key)), count))
