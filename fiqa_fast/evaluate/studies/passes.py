# SPDX-License-Identifier: Apache-2.0
"""Which forward passes over a data set give every score of the papers' tables, and of ours.

One pass gives a method's mean or head after every block, from which its fusions follow; every
other reduction of the logits is a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_fast.models import FaceViT, Gauge
from fiqa_fast.quality.fusion import FUSIONS, exit_weights

__all__ = ["Pass", "passes_of"]

Array = npt.NDArray[np.float64]
# Of the papers' ablations, and our two; averaging the heads first matters to the former alone.
_ABLATIONS = ("median", "max", "inverse_std")
_VARIANCES = ("row_variance", "centered_variance")


@dataclass(frozen=True)
class Pass:
    """One run over all images.

    Attributes:
        name: of its folder.
        options: of :class:`fiqa_fast.Scorer`.
        outputs: whose values an image has, side by side.
        scores: from values [n, columns] to quality scores [n] by their names in the table.
    """

    name: str
    options: Mapping[str, Any]
    outputs: tuple[str, ...]
    scores: Callable[[Array], dict[str, Array]]


def passes_of(model: FaceViT, gauge: Gauge | None, every_block: bool) -> list[Pass]:
    """The passes for a model: ViT-FIQA's and EX-FIQA's head where it has one, then ATTN-FIQA.

    ``every_block`` applies the ablations' reductions to every block, not to the last alone.
    """
    depth, heads = model.config.depth, model.config.num_heads
    passes = []
    if model.config.quality_head is not None:
        passes.append(Pass("ex-fiqa", {"method": "ex-fiqa"}, ("exit_scores",), _of_the_head))
    passes.append(
        Pass(
            "attn-fiqa-mean",
            {"method": "attn-fiqa", "gauge": None},
            ("exit_scores", "head_scores"),
            lambda v: {
                **_of_the_blocks("ATTN-FIQA mean", v[:, :depth]),
                **{f"ATTN-FIQA mean, head {h}": v[:, depth + h] for h in range(heads)},
            },
        )
    )
    for reduction in (*_ABLATIONS, *_VARIANCES):
        passes.append(_reduction(reduction, False, depth, every_block))
        if reduction in _ABLATIONS:
            passes.append(_reduction(reduction, True, depth, every_block))
    if gauge is not None:
        options = {"method": "attn-fiqa", "gauge": gauge}
        passes.append(
            Pass(
                "calibrated",
                options,
                ("exit_scores",),
                lambda v: _of_the_blocks("calibrated mean", v),
            )
        )
    return passes


def _reduction(reduction: str, averaged: bool, depth: int, every_block: bool) -> Pass:
    label = f"ATTN-FIQA {reduction}{' of averaged heads' if averaged else ''}"
    name = f"attn-fiqa-{reduction}{'-averaged' if averaged else ''}"
    options: dict[str, Any] = {
        "method": "attn-fiqa",
        "reduction": reduction,
        "heads": "average" if averaged else "all",
        "gauge": None,
    }
    if every_block:
        return Pass(
            f"{name}-every-block",
            options,
            ("exit_scores",),
            lambda v: {f"{label}, block {b + 1}": v[:, b] for b in range(depth)},
        )
    return Pass(name, options, ("score",), lambda v: {f"{label}, block {depth}": v[:, 0]})


def _of_the_blocks(label: str, values: Array) -> dict[str, Array]:  # [n, L]
    scores = {f"{label}, block {b + 1}": values[:, b] for b in range(values.shape[1])}
    fused = {f"{label}, {fusion} fusion": _fused(values, fusion) for fusion in FUSIONS}
    return {**scores, **fused}


def _of_the_head(values: Array) -> dict[str, Array]:  # [n, L]
    depth = values.shape[1]
    scores = {f"EX-FIQA, exit {b + 1}": values[:, b] for b in range(depth - 1)}
    return {
        **scores,
        f"ViT-FIQA (exit {depth})": values[:, -1],
        "EX-FIQA-F (uniform fusion)": _fused(values, "uniform"),
        "EX-FIQA-FW (depth fusion)": _fused(values, "depth"),
    }


def _fused(values: Array, fusion: str) -> Array:
    weights = exit_weights(values.shape[1], fusion)
    return np.asarray(sum(weight * values[:, exit - 1] for exit, weight in weights.items()))
