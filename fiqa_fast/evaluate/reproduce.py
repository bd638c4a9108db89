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
from fiqa_fast.gallery.sinks import Rows
from fiqa_fast.gallery.sources import Item
from fiqa_fast.models import FaceViT, Gauge
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
    progress: Callable[[str, int], Progress],
) -> dict[str, Array]:
    """Quality scores [n] of every method, exit, fusion and reduction, by their names.

    An image that cannot be decoded is -inf: discarded first. ``folder`` keeps the values;
    ``progress`` makes the progress of a pass from its name and the number of images to do.

    Raises:
        OutputError: the folder belongs to another run.
        ScoringError: a scorer failed.
    """
    keys = hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()
    gauge = Scorer(model, gauge=settings.gauge, device=settings.device).gauge
    scores: dict[str, Array] = {}
    for step in passes_of(model, gauge, settings.every_block):
        scorer = Scorer(
            model,
            outputs=step.outputs,
            dtype=settings.dtype,
            device=settings.device,
            **step.options,
        )
        facts = {**scorer.describe(), "peer_bgr": settings.peer_bgr, "keys_sha256": keys}
        stored = StoredValues(folder / step.name, len(items), facts)
        left = sum(last - first for first, last in stored.missing())
        shown = progress(step.name, left)
        try:
            values = stored.fill(_computing(step, scorer, items, settings, shown))
        finally:
            shown.close()
        values[~np.isfinite(values).all(1)] = -np.inf
        scores.update(step.scores(values))
    return scores


def _computing(
    step: Pass,
    scorer: Scorer,
    items: Sequence[Item],
    settings: Settings,
    shown: Progress,
) -> Callable[[int, int], npt.NDArray[np.float32]]:
    def score(pixels: torch.Tensor) -> Any:
        # The runner asks for a score by that name in any case.
        result = scorer(pixels.flip(1) if settings.peer_bgr else pixels)
        values = [getattr(result, name).reshape(len(pixels), -1) for name in step.outputs]
        joined = torch.cat(values, 1)
        return _Scored(joined[:, 0], joined)

    def compute(first: int, last: int) -> npt.NDArray[np.float32]:
        sink = _Memory()
        run(
            items[first:last],
            score,
            sink,
            size=scorer.config.img_size,
            outputs=("score", "values"),
            batch_size=settings.batch_size,
            progress=_KeptOpen(shown),
            on_error=lambda key, text: shown.tell(f"{key}: {text}"),
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
