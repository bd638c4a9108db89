# SPDX-License-Identifier: Apache-2.0
"""From moments to a gauge, and how well it does on the images that were held back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gallery.errors import InputError
from ..ranks import spearman
from . import ridge
from .gathering import Gathered
from .moments import Moments

# Of a cosine. Rounding moves it by less, degradations that mean anything by far more.
LEAST_DEVIATION = 1e-6


def solve(gathered: Gathered) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
    """``scale`` [L], ``query_weight`` [L, D], ``offset`` [L], float32, and a report per block.

    The strength is chosen, and the report made, by fits that have not seen the images held back;
    the gauge itself is then fitted on all images at that strength.

    Raises:
        InputError: the images give nothing to fit.
    """
    fitting, held_back = gathered.fitting, gathered.held_back
    assert fitting is not None
    assert held_back is not None
    if gathered.pixels is not None:
        raise InputError(
            f"wanted crops of many people, got one and the same image {gathered.images} times"
        )
    _check_variation(fitting, held_back)
    together = fitting.merged(held_back)
    depth = len(fitting.total)
    weights, offsets, report = [], [], []
    for block in range(depth):
        trial, score = ridge.choose(fitting, held_back, block)
        (final,) = ridge.fit(together, block, [trial.strength])
        weight = final.weight.float()
        mean = together.mean(block)
        weights.append(weight)
        # After rounding, so that the mean calibrated score is the mean target.
        offsets.append(mean[-1] - weight.double() @ mean[:-1])
        report.append(
            {
                "block": block + 1,
                "blocks_run": block,
                "r2": score,
                "strength": trial.strength,
                **_rank_correlations(gathered.sample.rows[:, block], trial),
            }
        )
    weight = torch.stack(weights)
    return (
        weight[:, 0].contiguous(),
        weight[:, 1:].contiguous(),
        torch.stack(offsets).float(),
        report,
    )


def _rank_correlations(rows: Tensor, fit: ridge.Linear) -> dict[str, float | None]:
    features, target = rows[:, :-1].double(), rows[:, -1].numpy()
    calibrated = features @ fit.weight
    values = {
        "spearman": spearman(calibrated.numpy(), target),
        "published_spearman": spearman(features[:, 0].numpy(), target),
    }
    # JSON has no NaN: a constant value has no ranks.
    return {name: value if value == value else None for name, value in values.items()}


def _check_variation(fitting: Moments, held_back: Moments) -> None:
    for moments, which in ((fitting, "the"), (held_back, "the held-back")):
        target = moments.covariance(0)[-1, -1].clamp(min=0).sqrt()
        if target < LEAST_DEVIATION:
            raise InputError(
                f"wanted degraded copies whose embeddings differ from their images', got cosines "
                f"that are all {moments.mean(0)[-1].item():.6f} over {which} images: are they "
                "blank, or is the embedding blind to its input?"
            )
    for block in range(len(fitting.total)):
        deviation = fitting.covariance(block).diagonal()[:-1].clamp(min=0).sqrt()
        if not (deviation > ridge.CONSTANT * fitting.mean(block)[:-1].abs()).any():
            raise InputError(
                f"wanted attention that differs from image to image, got a constant mean logit and "
                f"constant queries at block {block + 1}: are the images all alike?"
            )
