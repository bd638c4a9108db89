# SPDX-License-Identifier: Apache-2.0
"""Which items of a gallery are whose, where several processes share one, and their order.

Every process walks the same sources and takes its own: whole containers in turn where there are
enough of them, so that each is read once; else items by a hash of their keys, so that an item's
process does not depend on what else there is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import Item, Source

__all__ = [
    "SLOT",
    "Share",
    "containers",
    "fingerprint",
    "from_environment",
    "numbered",
    "parse_share",
]

SLOT = 2**40  # items that one container may have, in the numbers of numbered()


@dataclass(frozen=True)
class Share:
    """One of ``count`` shares, ``index`` from 0; ``by`` is keys or containers.

    ``plan`` is the :func:`fingerprint` of the containers that were shared out first.
    """

    index: int = 0
    count: int = 1
    by: str = "keys"
    plan: str = field(default="", compare=False)

    def takes_container(self, number: int) -> bool:
        """Whether the container with this number, from 0, is to be read."""
        return self.by != "containers" or number % self.count == self.index

    def takes_key(self, key: str) -> bool:
        """Whether an image is to be scored whose container does not decide."""
        if self.count == 1:
            return True
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.count == self.index

    def part(self, index: int, count: int) -> Share:
        """Return one of ``count`` shares of this share."""
        return Share(self.index + self.count * index, self.count * count, self.by, self.plan)


def numbered(sources: Iterable[Source], share: Share | None = None) -> Iterator[tuple[int, Item]]:
    """Yield the items of a share, each with its place in the order of the whole gallery.

    Places ascend and have gaps: what a container that is left out holds is not known.
    """
    share = Share() if share is None else share
    by_container = share.by == "containers"
    number, first, index = 0, 0, 0  # containers so far, the number where this stretch begins
    for source in sources:
        for piece in source.pieces():
            if isinstance(piece, Item):
                if share.takes_key(piece.key):
                    yield first + index, piece
                index += 1
                continue
            if share.takes_container(number):
                start = (2 * number + 1) * SLOT
                for place, item in enumerate(piece, start):
                    if by_container or share.takes_key(item.key):
                        yield place, item
            number += 1
            first, index = 2 * number * SLOT, 0


def containers(sources: Iterable[Source]) -> list[str]:
    """Return the names of all containers in their order, unread."""
    return [
        piece.prefix
        for source in sources
        for piece in source.pieces()
        if not isinstance(piece, Item)
    ]


def fingerprint(names: Sequence[str]) -> str:
    """Return what tells containers in their order from others."""
    text = json.dumps(list(names)).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def parse_share(text: str) -> tuple[int, int]:
    """Return ``i/n`` as index and count. Raises :class:`InputError`."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(
            f"--shard: wanted i/n with i from 0 to n - 1, such as 0/8 to 7/8, got {text!r}"
        )
    return int(index), int(count)


def from_environment(environ: Mapping[str, str] | None = None) -> tuple[int, int, int] | None:
    """Return rank, world size and local rank as torchrun sets them; None where it did not."""
    environ = os.environ if environ is None else environ
    try:
        rank, world, local = (int(environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return None
    return (rank, world, local) if 0 <= rank < world and world > 1 else None
