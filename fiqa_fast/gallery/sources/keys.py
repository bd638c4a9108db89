# SPDX-License-Identifier: Apache-2.0
"""Keys that name one row each, whatever names a container holds."""

from __future__ import annotations

import hashlib

import numpy as np

from fiqa_fast.gallery.text import printable

__all__ = ["Distinct", "member_key"]


class Distinct:
    """Makes keys distinct: the second ``a.jpg`` becomes ``a.jpg#2``, the third ``a.jpg#3``.

    The names depend on the order alone, so a container that has grown at its end keeps them. Of
    each key only a hash of 64 bits is kept, in 12 to 24 bytes: should two hashes ever agree, a
    key gets a number that it did not need.
    """

    def __init__(self) -> None:
        self._table = np.zeros(1024, np.uint64)  # open addressing; 0 is an empty place
        self._used = 0
        self._times: dict[str, int] = {}  # of the keys that came twice

    def __call__(self, key: str) -> str:
        if self._add(key):
            return key
        times = self._times.get(key, 1) + 1
        while not self._add(f"{key}#{times}"):
            times += 1
        self._times[key] = times
        return f"{key}#{times}"

    def _add(self, key: str) -> bool:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little") or 1
        table = self._table
        mask = len(table) - 1
        place = value & mask
        while found := table.item(place):
            if found == value:
                return False
            place = (place + 1) & mask
        table[place] = value
        self._used += 1
        if 3 * self._used > 2 * len(table):
            self._grow()
        return True

    def _grow(self) -> None:
        """Double the table; all values move at once but for those whose place is taken."""
        old = self._table[self._table != 0]
        self._table = table = np.zeros(2 * len(self._table), np.uint64)
        mask = len(table) - 1
        places = (old & np.uint64(mask)).astype(np.int64)
        table[places] = old
        for value in old[table[places] != old].tolist():
            place = value & mask
            while table.item(place):
                place = (place + 1) & mask
            table[place] = value


def member_key(name: str) -> str:
    """Return the key of a container's member: its path, tied to stay below the container.

    A leading ``./`` goes. What would lead elsewhere if a key were taken for a path, ``..`` and a
    leading ``/``, is written in hexadecimal.
    """
    name = printable(name)
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if name.startswith("/"):
        name = "\\x2f" + name[1:]
    if ".." not in name:
        return name
    return "/".join("\\x2e\\x2e" if part == ".." else part for part in name.split("/"))
