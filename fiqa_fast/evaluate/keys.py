# SPDX-License-Identifier: Apache-2.0
"""Which record belongs to which image, where two files name the same images differently.

One place for it, because a record of another image is a wrong answer that nobody sees.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.files import brief
from fiqa_fast.gallery.errors import InputError

__all__ = [
    "IMAGE_SUFFIXES",
    "MISSING",
    "Records",
    "distinct",
    "match",
    "match_each",
    "without_suffix",
]

MISSING = -1
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k"),
    )
)
# Only these are cut off: "0001.left" is a name, not a name with a suffix.
_SUFFIXES = IMAGE_SUFFIXES | {".npy"}


def without_suffix(key: str) -> str:
    """Return a key without the suffix of an image or an array, if it has one."""
    stem, suffix = os.path.splitext(key)
    return stem if suffix.lower() in _SUFFIXES else key


class Records(NamedTuple):
    """Keys of records, each once, and where they stand among all records."""

    keys: list[str]
    first: npt.NDArray[np.int64]  # [distinct], the first record of each key
    number: npt.NDArray[np.int64]  # [all], which key each record has


def distinct(keys: Sequence[str]) -> Records:
    """Return the distinct ones of ``keys``, in order of first occurrence."""
    numbers: dict[str, int] = {}
    number = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    first = np.full(len(numbers), len(keys), np.int64)
    np.minimum.at(first, number, np.arange(len(keys)))
    return Records(list(numbers), first, number)


def match(wanted: Sequence[str], have: Sequence[str], where: str) -> npt.NDArray[np.int64]:
    """Return for each wanted key the index of its record in ``have``, or ``MISSING``.  # [n]

    A record fits by its whole key; else by its whole key without the suffix; else by the longest
    common end of the two paths, whole components from the file's name (without suffix) upwards,
    if no other record has as much of it. Keys of ``have`` are distinct. Takes time and memory in
    proportion to the keys' lengths.

    Raises :class:`InputError`, with ``where`` for where the records stand, if several records
    fit a key equally well.
    """
    found = np.full(len(wanted), MISSING, np.int64)
    rest = _look_up(wanted, range(len(wanted)), {key: j for j, key in enumerate(have)}, found)
    if rest:
        stems: dict[str, int] = {}
        for j, key in enumerate(have):
            stem = without_suffix(key)
            stems[stem] = MISSING if stem in stems else j
        by_stem = {i: without_suffix(wanted[i]) for i in rest}
        rest = _look_up(by_stem, rest, stems, found)
    if rest:
        _match_ends(wanted, rest, have, found, where)
    return found


def match_each(wanted: Sequence[str], have: Sequence[str], where: str) -> npt.NDArray[np.int64]:
    """Match as :func:`match` does, and refuse two images that would share a record."""
    found = match(wanted, have, where)
    owners = np.flatnonzero(found != MISSING)
    _, first, times = np.unique(found[owners], return_index=True, return_counts=True)
    for i in owners[first[times > 1]][:1]:
        others = owners[found[owners] == found[i]]
        raise InputError(
            f"{where}: {brief(have[found[i]])!r} fits both {brief(wanted[others[0]])!r} and "
            f"{brief(wanted[others[1]])!r}; name the records there by the images' paths"
        )
    return found


def _look_up(
    keys: Sequence[str] | dict[int, str],
    which: Sequence[int],
    index: dict[str, int],
    found: npt.NDArray[np.int64],
) -> list[int]:
    """Fill in what the index knows and return the rest."""
    rest = []
    for i in which:
        j = index.get(keys[i], MISSING)
        if j == MISSING:
            rest.append(i)
        else:
            found[i] = j
    return rest


def _match_ends(
    wanted: Sequence[str],
    rest: Sequence[int],
    have: Sequence[str],
    found: npt.NDArray[np.int64],
    where: str,
) -> None:
    """Compare paths from their ends, one component per round.

    Keys with the same end form a group. Each round splits the groups by the next component, and
    a wanted key is done once its group holds one record, or no further split holds any.
    """
    # index -> (group, what is left of the path); group -> up to two of its records
    seekers = {i: (0, _normal(wanted[i])) for i in rest}
    records = {j: (0, _normal(key)) for j, key in enumerate(have)}
    members: dict[int, list[int]] = {}
    while seekers:
        groups: dict[tuple[int, str], int] = {}
        split: dict[int, tuple[int, int, str]] = {}
        for i, (group, path) in seekers.items():
            head, end = _last(path)
            step = groups.setdefault((group, end), len(groups) + 1)
            split[i] = (group, step, head)
        remaining = {}
        holds: dict[int, list[int]] = {step: [] for step in groups.values()}
        for j, (group, path) in records.items():
            head, end = _last(path)
            step = groups.get((group, end), 0) if end else 0  # what has ended goes no further
            if step:
                remaining[j] = (step, head)
                if len(holds[step]) < 2:
                    holds[step].append(j)
        seekers, records = {}, remaining
        for i, (group, step, head) in split.items():
            if len(holds[step]) == 1:
                found[i] = holds[step][0]
            elif holds[step]:
                seekers[i] = (step, head)
            elif group:
                _refuse_several(wanted[i], [have[j] for j in members[group]], where)
        members = holds


def _normal(key: str) -> str:
    return without_suffix(key).replace("/./", "/").removeprefix("./")


def _last(path: str) -> tuple[str, str]:
    """Split off the last component; an absolute path's first one is empty."""
    head, _, end = path.rstrip("/").rpartition("/")
    return head, end


def _refuse_several(key: str, records: Sequence[str], where: str) -> None:
    one, other = (brief(record) for record in records[:2])
    raise InputError(
        f"{where}: both {one!r} and {other!r} fit {brief(key)!r}; "
        "name the records there by the images' paths"
    )
