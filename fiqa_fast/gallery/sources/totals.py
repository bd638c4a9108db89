# SPDX-License-Identifier: Apache-2.0
"""What several sources come to."""

from __future__ import annotations

from collections.abc import Iterable

from fiqa_fast.gallery.sources.item import Source

__all__ = ["damages", "exact_total", "skipped", "total"]


def total(sources: Iterable[Source]) -> int | None:
    """Return how many items there are, or None where a source cannot tell."""
    found = 0
    for source in sources:
        here = source.count()
        if here is None:
            return None
        found += here
    return found


def exact_total(sources: Iterable[Source]) -> int:
    """Return how many items there are, of a container that does not say by reading it.

    Raises :class:`InputError` for standard input, which cannot be read again.
    """
    found = 0
    for source in sources:
        here = source.count()
        found += sum(1 for _ in source) if here is None else here
    return found


def skipped(sources: Iterable[Source]) -> int:
    """Return how much the last iteration passed over as no images."""
    return sum(getattr(source, "skipped", 0) for source in sources)


def damages(sources: Iterable[Source]) -> list[str]:
    """Return a line for each container that the last iteration could not read to its end."""
    return [line for source in sources for line in getattr(source, "damage", ())]
