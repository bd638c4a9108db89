# SPDX-License-Identifier: Apache-2.0
"""Which record belongs to which image, where two files name the same images differently.

One place for it, because a record of another image is a wrong answer that nobody sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fiqa_fast.evaluate.readers.files import brief
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
    stem, dot, suffix = key.rpartition(".")
    named = stem and not stem.endswith("/")
    return stem if named and dot + suffix.lower() in _SUFFIXES else key


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
    """Return for each wanted key the index of its record in ``have``, or ``MISSING``: int64 [n].

    There are three ways to name an image, and all records are taken to be named in the first way
    in which any fits, so that an image without a record is not given a neighbour's:

    1. by the same key;
    2. by the same key but for its suffix;
    3. by a path with the same end. The record with the longest common end fits, whole components
       from the file's name (without suffix) upwards, if no other record has as much of it. What
       comes before the common end has to be the same for all wanted keys, or for all records.

    Keys of ``have`` are distinct. Takes time and memory in proportion to the keys' lengths.

    Raises :class:`InputError`, with ``where`` for where the records stand, if several records
    fit a key equally well, or ends fit without a system.
    """
    found = _find(wanted, {key: j for j, key in enumerate(have)})
    if (found != MISSING).any():
        return found
    stems: dict[str, int] = {}
    twice: dict[str, int] = {}
    for j, key in enumerate(have):
        if stems.setdefault(without_suffix(key), j) != j:
            twice[without_suffix(key)] = j
    found = _find([without_suffix(key) for key in wanted], stems)
    if (found != MISSING).any():
        for i in np.flatnonzero(found != MISSING).tolist() if twice else ():
            stem = without_suffix(wanted[i])
            if stem in twice:
                _refuse_several(wanted[i], [have[found[i]], have[twice[stem]]], where)
        return found
    _match_ends(wanted, have, found, where)
    _check_heads(wanted, have, found, where)
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


def _find(keys: Sequence[str], index: dict[str, int]) -> npt.NDArray[np.int64]:
    return np.array([index.get(key, MISSING) for key in keys], np.int64)


def _match_ends(
    wanted: Sequence[str], have: Sequence[str], found: npt.NDArray[np.int64], where: str
) -> None:
    """Compare paths from their ends, one component per round.

    Keys with the same end form a group. Each round splits the groups by the next component, and
    a wanted key is done once its group holds one record, or no further split holds any.
    """
    # index -> (group, what is left of the path); group -> up to two of its records
    seekers = {i: (0, _normal(key)) for i, key in enumerate(wanted)}
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


def _check_heads(
    wanted: Sequence[str], have: Sequence[str], found: npt.NDArray[np.int64], where: str
) -> None:
    """Refuse ends that fit by chance: c/1.jpg and d/1.jpg, where a/2.jpg has b/2.jpg."""
    first: tuple[str, str] | None = None
    same = [True, True]
    for i in np.flatnonzero(found != MISSING).tolist():
        one, two = _normal(wanted[i]), _normal(have[found[i]])
        if first is None:
            first = _heads(one, two)
            start, record_start = (f"{head}/" if head else "" for head in first)
        elif not (
            one.startswith(start)
            and two.startswith(record_start)
            and one[len(start) :] == two[len(record_start) :]
        ):
            pairs = zip(same, _heads(one, two), first, strict=True)
            same = [known and head == other for known, head, other in pairs]
        if not any(same):
            raise InputError(
                f"{where}: {brief(wanted[i])!r} and {brief(have[found[i]])!r} have the same end, "
                "but are not related as those before; name the records by the images' paths"
            )


def _heads(key: str, record: str) -> tuple[str, str]:
    """Return what comes before the common end of two paths."""
    one, two = key.split("/"), record.split("/")
    while one and two and one[-1] == two[-1]:
        one.pop()
        two.pop()
    return "/".join(one), "/".join(two)


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
