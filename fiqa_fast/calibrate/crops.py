# SPDX-License-Identifier: Apache-2.0
"""Images and their degraded copies, drawn so that neither order nor company matters."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..degradations import TYPES, degrade, random_degradation
from ..errors import ImageError
from ..gallery.errors import InputError
from ..gallery.sources import Item
from ..images import Pixels, decode, describe, fit

T = TypeVar("T")
R = TypeVar("R")

# Of the images, in the order given, every fifth is held back to choose the strength of the ridge.
HELD_BACK_EVERY = 5
# Rows (copies of images) per feature that ``copies=None`` aims at, and its bounds. Copies of one
# image have much in common: beyond the upper bound, more of them do not make up for images.
ROWS_PER_FEATURE = 30
FEWEST_COPIES, MOST_COPIES = 4, 24
# Below so many rows per feature, or so many images, the held-back images say little of others.
FEWEST_ROWS_PER_FEATURE = 2
FEWEST_IMAGES = 25


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How copies are drawn: so many per image, a share left clean, of these types."""

    copies: int
    clean_share: float = 0.4
    types: tuple[str, ...] = TYPES
    seed: int = 0


class Crop(NamedTuple):
    """An image to be: a key that seeds its copies, and a way to get its pixels.

    ``load`` takes a side and returns uint8 RGB [3, side, side]; it may raise ``ImageError`` or
    ``OSError``.
    """

    key: str
    load: Callable[[int], Pixels]


class Copies(NamedTuple):
    """An image and its copies. ``planes`` [1 + m, 3, S, S] uint8: the original first, then the
    copies that were changed; ``rows`` [copies]: the plane of each copy, 0 where it was left clean.
    """

    place: int  # of the image among all, from 0
    key: str
    planes: Pixels  # empty where the image could not be read
    rows: npt.NDArray[np.int64]
    error: str | None


def crop_of(item: Item) -> Crop:
    def load(size: int) -> Pixels:
        with item.open() as file:
            return fit(decode(file), size).planes

    return Crop(item.key, load)


def default_copies(images: int, features: int) -> int:
    """Copies per image for about ``ROWS_PER_FEATURE`` rows per feature, within bounds."""
    fitting = max(1, images - images // HELD_BACK_EVERY)
    wanted = math.ceil(ROWS_PER_FEATURE * features / fitting)
    return min(MOST_COPIES, max(FEWEST_COPIES, wanted))


def check_number(images: int, features: int, copies: int) -> None:
    """Refuse a fit on too few images, before any of them is read."""
    rows = FEWEST_ROWS_PER_FEATURE * features
    share = 1 - 1 / HELD_BACK_EVERY
    wanted = max(FEWEST_IMAGES, math.ceil(rows / (share * copies)))
    if images < wanted:
        raise InputError(
            f"wanted at least {wanted} images, got {images}: each block's regression has "
            f"{features} features and takes {FEWEST_ROWS_PER_FEATURE} rows for each, {copies} "
            f"copies make as many rows of an image, and every {HELD_BACK_EVERY}th is held back"
        )


def generator(seed: int, key: str, copy: int) -> np.random.Generator:
    """The random numbers of one copy of one image."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest(seed, key, copy), "little")))


def digest(seed: int, key: str, copy: int) -> bytes:
    text = f"{seed}\0{copy}\0{key}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def make_copies(place: int, crop: Crop, size: int, drawing: Drawing) -> Copies:
    """Decode one image, bring it to the model's size, and draw its copies there."""
    rows = np.zeros(drawing.copies, np.int64)
    try:
        original = crop.load(size)
    except Exception as error:  # what a storage raises concerns this image alone
        text = str(error) if isinstance(error, ImageError) else describe(error)
        return Copies(place, crop.key, np.zeros(0, np.uint8), rows, text)
    planes = [original]
    pixels = np.ascontiguousarray(original.transpose(1, 2, 0))  # [S, S, 3]
    for copy in range(drawing.copies):
        rng = generator(drawing.seed, crop.key, copy)
        kind, level = random_degradation(rng, drawing.types, drawing.clean_share)
        if kind is not None:
            rows[copy] = len(planes)
            planes.append(degrade(pixels, kind, level, rng).transpose(2, 0, 1))
    return Copies(place, crop.key, np.stack(planes), rows, None)


def copies_ahead(
    crops: Iterable[Crop], first: int, size: int, drawing: Drawing, workers: int, window: int
) -> Iterator[Copies]:
    """The copies of ``crops`` from number ``first`` on, in order, made ahead on threads."""
    numbered = islice(enumerate(crops), first, None)
    with ThreadPoolExecutor(workers, "fiqa_fast-degrade") as pool:
        yield from _ahead(
            lambda pair: make_copies(pair[0], pair[1], size, drawing), numbered, pool, window
        )


def _ahead(
    function: Callable[[Any], R], items: Iterable[Any], pool: ThreadPoolExecutor, window: int
) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # an interrupt does not wait for what nobody will take
        pool.shutdown(wait=False, cancel_futures=True)


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while group := list(islice(source, size)):
        yield group
