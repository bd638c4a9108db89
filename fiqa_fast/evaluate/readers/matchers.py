# SPDX-License-Identifier: Apache-2.0
"""Embeds images with a matcher: any ONNX model, or a checkpoint of this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from fiqa_fast.evaluate.readers.embeddings import check_missing
from fiqa_fast.evaluate.readers.files import StrPath, brief
from fiqa_fast.evaluate.readers.onnx_matcher import MatcherInput, OnnxMatcher, parse_matcher_input
from fiqa_fast.gallery.errors import InputError, ScoringError
from fiqa_fast.gallery.progress import Progress
from fiqa_fast.gallery.runner import run
from fiqa_fast.gallery.sinks import Rows
from fiqa_fast.gallery.sources import Item, printable
from fiqa_fast.models.loading import Architecture
from fiqa_fast.reading import Reading

__all__ = ["Matcher", "MatcherInput", "embed_images", "open_matcher", "parse_matcher_input"]


class Matcher(Protocol):
    """Anything that turns images into vectors whose cosine tells people apart."""

    size: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float [B, E] for uint8 RGB [B, 3, size, size]."""
        ...


class CheckpointMatcher:
    """The embedding of one of this package's models, not normalised."""

    def __init__(
        self,
        model: StrPath,
        architecture: Architecture | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Load the model; raises :class:`fiqa_fast.CheckpointError` as ``load_model`` does."""
        from fiqa_fast.models import load_model
        from fiqa_fast.scorer import Scorer

        vit = load_model(os.fspath(model), architecture=architecture)
        self.size = vit.config.img_size
        self._scorer = Scorer(vit, outputs=("embedding",), gauge=None, device=device, dtype=dtype)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 [B, E]."""
        embedding = self._scorer(images).embedding
        assert embedding is not None
        return embedding


def open_matcher(
    matcher: StrPath,
    *,
    inputs: MatcherInput | None = None,
    architecture: Architecture | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> Matcher:
    """Open ``"starter"``, a checkpoint file, or an ``.onnx`` model, which ``inputs`` goes with.

    ``device`` and ``dtype`` are the :class:`fiqa_fast.Scorer`'s; ONNX models run on the CPU.
    """
    if os.path.splitext(os.fspath(matcher))[1].lower() == ".onnx":
        return OnnxMatcher(matcher, inputs, threads)
    if inputs is not None:
        raise InputError(
            f"--matcher-input tells an ONNX model's input, and {brief(matcher)!r} is none"
        )
    return CheckpointMatcher(matcher, architecture, device, dtype)


def embed_images(
    items: Sequence[Item],
    matcher: Matcher | StrPath,
    *,
    missing: str = "refuse",
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Return the embeddings of images, [n, E], not normalised.

    Images are decoded ahead in threads, as ``fiqa-fast score`` does it; those of another size
    are resized bilinearly. Memory holds a few batches and the result.

    Args:
        items: [n], as :attr:`Dataset.items` or :func:`fiqa_fast.gallery.open_sources` give them.
        matcher: of :func:`open_matcher`, or what it opens.
        missing: what to do about images that cannot be decoded, or that the matcher gives zeros
            or values that are not finite: ``"refuse"`` raises at the end, ``"mark"`` gives them
            a row of nan, and the reasons to ``progress``.
        batch_size: images per call of the matcher.
        workers: threads that decode.
        progress: told what happens; silent by default.

    Raises:
        InputError: one line; there is no image, the matcher fails, or an image cannot be
            embedded (under ``"refuse"``; under ``"mark"``, where none can).
    """
    check_missing(missing)
    if not items:
        raise InputError("wanted images to embed, got none")
    if isinstance(matcher, (str, os.PathLike)):
        name = printable(os.fspath(matcher))
        matcher = open_matcher(matcher)
    else:
        name = "matcher"
    sink = _Collector(len(items), progress if missing == "mark" else None)
    try:
        run(
            items,
            lambda images: _Result(matcher(images)),
            sink,
            reading=Reading(matcher.size),
            outputs=("embedding",),
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    except ScoringError as error:
        raise InputError(f"{name}: {brief(error, 300)}") from error
    if sink.failed and (missing == "refuse" or sink.failed == len(items)):
        raise InputError(
            f"{sink.failed} of {len(items)} images cannot be embedded, for one {sink.example}"
        )
    return sink.values


class _Result:
    """What the runner wants of a scorer: here the embedding alone counts."""

    def __init__(self, embedding: torch.Tensor) -> None:
        self.embedding = embedding
        self.score = torch.zeros(len(embedding))


class _Collector:
    """A sink that keeps the embeddings, in order, and notes what has none."""

    def __init__(self, n: int, progress: Progress | None) -> None:
        self.values = np.full((n, 0), np.nan, np.float32)
        self.failed = 0
        self.example = ""
        self._progress = progress
        self._row = 0

    def write(self, rows: Rows) -> None:
        vectors = rows.columns["embedding"]
        if not self._row:
            self.values = np.full((len(self.values), vectors.shape[1]), np.nan, np.float32)
        usable = np.isfinite(vectors).all(1) & vectors.any(1)
        for i in np.flatnonzero(~usable):
            reason = rows.errors[i] or "the matcher gives zeros or values that are not finite"
            line = f"{brief(rows.keys[i])}: {reason}"
            self.failed += 1
            self.example = self.example or line
            if self._progress is not None:
                self._progress.tell(line)
        self.values[self._row : self._row + len(rows)][usable] = vectors[usable]
        self._row += len(rows)

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass
