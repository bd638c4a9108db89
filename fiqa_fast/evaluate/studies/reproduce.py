# SPDX-License-Identifier: Apache-2.0
"""From a data set, a checkpoint and a matcher's embeddings to the papers' table.

Every pass writes what it computes part by part into a folder and finds it there again, so that an
interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fiqa_fast.gallery.progress import Progress
from fiqa_fast.gallery.runner import run
from fiqa_fast.gallery.sinks import Rows, text_key
from fiqa_fast.gallery.sources import Item
from fiqa_fast.models import FaceViT, Gauge
from fiqa_fast.reading import Reading
from fiqa_fast.scorer import Scorer

from .passes import Pass, passes_of
from .stored import StoredValues

__all__ = ["Settings", "scores_of_all_methods"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How images are scored; see :class:`fiqa_fast.Scorer`.

    ``peer_bgr`` swaps red and blue, as the reference scripts do by default, for files that their
    own extraction wrote channel-swapped. ``every_block`` applies every reduction to every block.
    """

    dtype: str = "float32"
    device: str = "auto"
    gauge: str | Path | Gauge | None = "auto"
    peer_bgr: bool = False
    every_block: bool = False
    batch_size: int = 32


def scores_of_all_methods(
    model: FaceViT,
    items: Sequence[Item],
    folder: Path,
    settings: Settings,
    progress: Callable[[int], Progress],
    announce: Callable[[Progress, str], None] = lambda shown, line: None,
) -> dict[str, Array]:
    """Quality scores [n] of every method, exit, fusion and reduction, by their names.

    What has no finite score, as an image that cannot be decoded, is -inf: discarded first.
    ``folder`` keeps the values, which belong to these keys of images, in this order, and this
    model; that the files behind the keys are still the same is not checked. ``progress`` makes
    the progress of all passes from the number of images still to be scored, an image counting
    once per pass, and ``announce`` hears which pass begins. Images that cannot be scored are told
    by name, once each.

    Raises:
        OutputError: the folder belongs to another run, or a part of it is damaged.
        ScoringError: a scorer failed.
        ValueError: the model or the device cannot do a pass.
    """
    keys = hashlib.sha256("\0".join(item.key for item in items).encode()).hexdigest()
    gauge = Scorer(model, gauge=settings.gauge, device=settings.device).gauge
    steps = passes_of(model, gauge, settings.every_block)
    # All of them before the first image is scored: a pass that cannot be must not be found hours
    # later. One at a time, as each scorer has weights of its own.
    stored = []
    for step in steps:
        facts = _scorer(model, step, settings).describe()
        facts.update(peer_bgr=settings.peer_bgr, keys_sha256=keys)
        stored.append(StoredValues(folder / step.name, len(items), facts))
    left = [sum(last - first for first, last in each.missing()) for each in stored]
    shown = progress(sum(left))
    scores: dict[str, Array] = {}
    told: set[str] = set()
    try:
        for number, (step, each) in enumerate(zip(steps, stored, strict=True)):
            if left[number]:
                place = f"pass {number + 1} of {len(steps)}"
                announce(shown, f"{place}, {step.name}: {left[number]} images to score")
                scorer = _scorer(model, step, settings)
                each.fill(_computing(step, scorer, items, settings, shown, told))
            values = each.load()
            values[~np.isfinite(values)] = -np.inf
            scores.update(step.scores(values))
    finally:
        shown.close()
    return scores


def _scorer(model: FaceViT, step: Pass, settings: Settings) -> Scorer:
    return Scorer(
        model,
        outputs=step.outputs,
        dtype=settings.dtype,
        device=settings.device,
        **step.options,
    )


def _computing(
    step: Pass,
    scorer: Scorer,
    items: Sequence[Item],
    settings: Settings,
    shown: Progress,
    told: set[str],
) -> Callable[[int, int], npt.NDArray[np.float32]]:
    reading = Reading(scorer.config.img_size, bgr=settings.peer_bgr)

    def score(pixels: torch.Tensor) -> Any:
        # The runner asks for a score by that name in any case.
        result = scorer(pixels)
        values = [getattr(result, name).reshape(len(pixels), -1) for name in step.outputs]
        joined = torch.cat(values, 1)
        return _Scored(joined[:, 0], joined)

    def tell(key: str, text: str) -> None:
        if key not in told:
            told.add(key)
            shown.tell(f"{text_key(key)}: {text}")

    def compute(first: int, last: int) -> npt.NDArray[np.float32]:
        sink = _Memory()
        run(
            items[first:last],
            score,
            sink,
            reading=reading,
            outputs=("score", "values"),
            batch_size=settings.batch_size,
            progress=_KeptOpen(shown),
            on_error=tell,
        )
        return np.concatenate(sink.parts)

    return compute


class _KeptOpen:
    """Progress that outlives a part's run."""

    def __init__(self, progress: Progress) -> None:
        self.update, self.tell = progress.update, progress.tell

    def close(self) -> None:
        """Leave it open."""


@dataclass
class _Scored:
    score: torch.Tensor
    values: torch.Tensor


class _Memory:
    """A sink that keeps the values of some images."""

    def __init__(self) -> None:
        self.parts: list[npt.NDArray[np.float32]] = []

    def write(self, rows: Rows) -> None:
        self.parts.append(rows.columns["values"])

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass
