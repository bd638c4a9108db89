# SPDX-License-Identifier: Apache-2.0
"""Does a score fall when an image gets worse? Each type of damage at five levels, and clean.

A score worth the name falls with the level of every type of damage. How well it does is a rank
correlation (Spearman's) of level and score, -1 at best, in two forms: *pooled* over all images
and levels, where the differences between the clean images count against it; and *within image*,
the mean of each image's own correlation, where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fiqa_fast.degradations import MAX_LEVEL, TYPES, Pixels, degrade, parameter
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.ranks import codes, weighted_spearman

__all__ = ["LEVELS", "Curve", "Estimate", "Study", "degrade_study", "summarise"]

LEVELS = tuple(range(MAX_LEVEL + 1))  # 0 is the clean image

Array = npt.NDArray[np.float64]
# A list of B uint8 RGB images [H, W, 3] -> B scores, higher is better.
Scoring = Callable[[list[Pixels]], npt.ArrayLike]


@dataclass(frozen=True)
class Estimate:
    """A value over the images, with its 95 % interval; nan where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """How the score follows the level of one type of damage.

    Attributes:
        kind: the type, one of :data:`fiqa_fast.degradations.TYPES`.
        pooled: Spearman's correlation over all images and levels together.
        within: the mean over images of each one's correlation over its six levels.
        undefined: images without a correlation of their own: their six scores are equal.
        monotone: share of images whose score falls at each of the five steps.
        mean: mean score at the levels 0 to 5.
        quartiles: first and third quartile of the scores at each level.
    """

    kind: str
    pooled: Estimate
    within: Estimate
    undefined: int
    monotone: float
    mean: tuple[Estimate, ...]
    quartiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Study:
    """What :func:`degrade_study` found.

    Attributes:
        scores: float64 [images, types, 6]: of each image, type and level from 0 to 5.
        curves: one for each type.
        unscored: images left out, because a score of theirs was not finite.
        seed: of the damage and of the bootstrap.
    """

    scores: Array
    curves: tuple[Curve, ...]
    unscored: int
    seed: int


def degrade_study(
    images: Iterable[Pixels],
    scorer: Scoring,
    types: Sequence[str] = TYPES,
    *,
    seed: int = 0,
    draws: int = 1000,
    on_unscored: Callable[[int], None] | None = None,
) -> Study:
    """Score images clean and at five levels of every type of damage.

    Images are taken one at a time; only their scores are kept. What is random in the damage is
    drawn for each image and type, and is the same at all levels.

    Args:
        images: uint8 RGB arrays [H, W, 3], of any sizes that the scorer takes.
        scorer: gets a list of such arrays, one image's versions, and returns as many scores;
            a :class:`fiqa_fast.Scorer` is ``lambda crops: scorer(crops).score``.
        types: some of :data:`fiqa_fast.degradations.TYPES`.
        seed: of the damage and of the bootstrap.
        draws: of the bootstrap over images that gives the intervals.
        on_unscored: hears the number of each image (from 0) with a score that is not finite.

    Raises:
        ValueError: a type that is not known, or not one score for each image.
        InputError: no image, or none with finite scores; it is a ValueError too.
    """
    types = tuple(dict.fromkeys(types))
    if not types:
        raise ValueError(f"types must be some of {', '.join(TYPES)}, got none")
    for kind in types:
        parameter(kind, 0)
    rows: list[Array] = []
    unscored = 0
    for number, pixels in enumerate(images):
        row = _scores_of(pixels, scorer, types, (seed, number))
        if np.isfinite(row).all():
            rows.append(row)
        else:
            unscored += 1
            if on_unscored is not None:
                on_unscored(number)
    if not rows:
        raise InputError("wanted at least one image that can be scored, got none")
    scores = np.stack(rows)
    return Study(scores, summarise(scores, types, seed=seed, draws=draws), unscored, seed)


def _scores_of(
    pixels: Pixels, scorer: Scoring, types: Sequence[str], seed: tuple[int, int]
) -> Array:  # [types, 6]
    versions = [pixels]
    for kind in types:
        for level in LEVELS[1:]:
            rng = np.random.default_rng((*seed, TYPES.index(kind)))
            versions.append(degrade(pixels, kind, level, rng))
    scores = np.asarray(scorer(versions), dtype=np.float64)
    if scores.shape != (len(versions),):
        raise ValueError(f"wanted {len(versions)} scores, got an array {list(scores.shape)}")
    clean = np.full((len(types), 1), scores[0])
    return np.concatenate((clean, scores[1:].reshape(len(types), -1)), axis=1)


def summarise(
    scores: Array, types: Sequence[str], *, seed: int = 0, draws: int = 1000
) -> tuple[Curve, ...]:
    """Return the curve of each type from scores [images, types, 6].

    Intervals are percentiles of a bootstrap over images: all versions of an image go together.
    """
    # One image says nothing about others.
    draws = draws if len(scores) > 1 else 0
    return tuple(
        _curve(kind, scores[:, i], _resamples(len(scores), seed, draws))
        for i, kind in enumerate(types)
    )


def _resamples(n: int, seed: int, draws: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each of n images is drawn, every time with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(n, size=n), minlength=n)


def _curve(kind: str, scores: Array, resamples: Iterable[npt.NDArray[np.int64]]) -> Curve:
    n = len(scores)
    levels = codes(np.tile(np.array(LEVELS, np.float64), n))
    ranked = codes(scores.ravel())
    own = _within_image(scores)
    defined = np.isfinite(own)

    def statistics(weight: npt.NDArray[np.int64]) -> Array:  # pooled, within, six means
        counted = weight[defined]
        total = counted.sum()
        within = counted @ own[defined] / total if total else np.nan
        pooled = weighted_spearman(levels, ranked, np.repeat(weight, len(LEVELS)))
        return np.array([pooled, within, *(weight @ scores / n)])

    values = statistics(np.ones(n, np.int64))
    resampled = np.array([statistics(weight) for weight in resamples]).reshape(-1, len(values))
    pooled, within, *mean = (
        Estimate(float(value), *_interval(column))
        for value, column in zip(values, resampled.T, strict=True)
    )
    low, high = np.percentile(scores, (25, 75), axis=0)
    return Curve(
        kind,
        pooled,
        within,
        undefined=int(np.count_nonzero(~defined)),
        monotone=float((np.diff(scores, axis=1) < 0).all(axis=1).mean()),
        mean=tuple(mean),
        quartiles=tuple(zip(low.tolist(), high.tolist(), strict=True)),
    )


def _interval(values: Array) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _within_image(scores: Array) -> Array:  # [images, 6] -> [images]
    """Spearman's correlation of level and score for each image; nan where scores are equal."""
    below = (scores[:, None, :] < scores[:, :, None]).sum(2)
    equal = (scores[:, None, :] == scores[:, :, None]).sum(2)
    ranks = below + (equal - scores.shape[1]) / 2  # centred
    levels = np.array(LEVELS) - np.mean(LEVELS)
    scale = np.sqrt((ranks**2).sum(1) * (levels**2).sum())
    nothing: Array = np.full(len(scores), np.nan)
    own: Array = np.divide(ranks @ levels, scale, out=nothing, where=scale > 0)
    return own
