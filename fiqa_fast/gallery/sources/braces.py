# SPDX-License-Identifier: Apache-2.0
"""Braces in names, as users of WebDataset write them: ``shards-{000000..000123}.tar``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.text import brief

__all__ = ["expand", "has_braces"]

_MAX_NAMES = 100_000
_MAX_GROUPS = 32
# The innermost group: alternatives, or numbers or letters from, to and by how much.
_GROUP = re.compile(
    r"\{(?:(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?|([a-zA-Z])\.\.([a-zA-Z])"
    r"|([^{}]*,[^{}]*))\}"
)


def has_braces(text: str) -> bool:
    """Whether there is something to expand."""
    return _GROUP.search(text) is not None


def expand(text: str) -> list[str]:
    """Return the names that a text with braces stands for, each once, in the order of a shell.

    Raises :class:`InputError` where there are too many.
    """
    names = list(islice(_expanded(text, 0), _MAX_NAMES + 1))
    if len(names) > _MAX_NAMES:
        raise InputError(f"{brief(text)}: wanted at most {_MAX_NAMES} names, got more")
    return list(dict.fromkeys(names))


def _expanded(text: str, groups: int) -> Iterator[str]:
    found = _GROUP.search(text)
    if found is None:
        yield text
        return
    if groups == _MAX_GROUPS:
        raise InputError(f"{brief(text)}: wanted at most {_MAX_GROUPS} pairs of braces, got more")
    for choice in _choices(*found.groups()):
        yield from _expanded(text[: found.start()] + choice + text[found.end() :], groups + 1)


def _choices(
    first: str | None,
    last: str | None,
    step: str | None,
    letter: str | None,
    other: str | None,
    alternatives: str | None,
) -> Iterator[str]:
    if first is not None and last is not None:
        padded = any(re.match("-?0[0-9]", number) for number in (first, last))
        width = max(len(first), len(last)) if padded else 0
        numbers = _span(int(first), int(last), max(1, int(step or 1)))
        yield from (f"{number:0{width}d}" for number in numbers)
    elif letter is not None and other is not None:
        yield from map(chr, _span(ord(letter), ord(other), 1))
    elif alternatives is not None:
        yield from alternatives.split(",")


def _span(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
