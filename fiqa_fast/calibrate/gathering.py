# SPDX-License-Identifier: Apache-2.0
"""From images to moments: a chunk of images at a time, always the same chunks.

So the sums, and with them every bit of the gauge, depend on the images and their order alone, and
a fit that was interrupted between two chunks goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..gallery.errors import InputError
from ..gallery.progress import Progress
from ..workers import run_alone
from .crops import HELD_BACK_EVERY, Copies, Crop, Drawing, copies_ahead, digest, grouped
from .moments import Moments
from .sample import RowSample
from .subject import Subject

CHUNK = 16  # images


@dataclasses.dataclass
class Gathered:
    """What is left of the images seen so far; rows are copies, their target is the last variable.

    ``fitting`` and ``held_back`` are None until the first image. ``unread`` are images that could
    not be read, and ``first_error`` says why the first of them. ``pixels`` is a digest of the
    first image's, until one differs.
    """

    sample: RowSample
    fitting: Moments | None = None
    held_back: Moments | None = None
    chunks: int = 0
    images: int = 0
    unread: int = 0
    first_error: str = ""
    pixels: str | None = ""


def gather(
    subject: Subject,
    crops: Iterable[Crop],
    drawing: Drawing,
    *,
    workers: int,
    progress: Progress,
    on_error: Callable[[str, str], None],
    so_far: Gathered | None = None,
    after_chunk: Callable[[Gathered], None] = lambda gathered: None,
) -> Gathered:
    """Observe all images and their copies, from where ``so_far`` ends.

    Raises:
        InputError: the model's values of an image are not finite.
    """
    variables = subject.width + 2
    gathered = so_far or Gathered(RowSample.empty(subject.depth, variables))
    first = gathered.chunks * CHUNK
    progress.update(first)
    made = copies_ahead(crops, first, subject.size, drawing, workers, window=2 * CHUNK)
    for chunk in grouped(made, CHUNK):
        for image in chunk:
            if image.error is not None:
                on_error(image.key, image.error)
                gathered.unread += 1
                gathered.first_error = gathered.first_error or f"{image.key}: {image.error}"
        seen = [image for image in chunk if image.error is None]
        if seen:
            rows = rows_of(subject, seen)
            run_alone(partial(_add, gathered, seen, rows, drawing.seed))
        for image in seen:
            pixels = hashlib.sha256(image.planes[0].tobytes()).hexdigest()
            if gathered.pixels is not None and gathered.pixels != pixels:
                gathered.pixels = None if gathered.pixels else pixels
        gathered.images += len(seen)
        gathered.chunks += 1
        progress.update(len(chunk))
        after_chunk(gathered)
    return gathered


def rows_of(subject: Subject, images: list[Copies]) -> Tensor:
    """[images, copies, L, D + 2], float64: mean logit, phi and target of every copy."""
    planes = [image.planes for image in images]
    starts = np.cumsum([0, *(len(p) for p in planes)])[:-1]
    seen = subject.observe(torch.from_numpy(np.concatenate(planes)))
    original = torch.from_numpy(starts)
    copies = original[:, None] + torch.from_numpy(np.stack([image.rows for image in images]))
    return run_alone(lambda: _rows(seen.mean_logits, seen.phi, seen.embedding, original, copies))


def _rows(
    mean_logits: Tensor, phi: Tensor, embedding: Tensor, original: Tensor, copies: Tensor
) -> Tensor:
    direction = torch.nn.functional.normalize(embedding.double(), dim=-1, eps=0.0)
    target = (direction[copies] * direction[original][:, None]).sum(-1)
    target[copies == original[:, None]] = 1.0
    features = torch.cat([mean_logits.unsqueeze(-1), phi], dim=-1)[copies].double()
    L = mean_logits.shape[1]
    return torch.cat([features, target[..., None, None].expand(-1, -1, L, 1)], dim=-1)


def _add(gathered: Gathered, images: list[Copies], rows: Tensor, seed: int) -> None:
    for image, own in zip(images, rows, strict=True):
        if not own.isfinite().all():
            raise InputError(
                f"{image.key}: wanted finite features and an embedding with a direction, got NaN, "
                "infinity or zero; fit in float32, or leave this image out"
            )
    if gathered.fitting is None or gathered.held_back is None:
        origin = rows.mean((0, 1))
        gathered.fitting, gathered.held_back = Moments.around(origin), Moments.around(origin)
    places = np.array([image.place for image in images])
    held = torch.from_numpy(places % HELD_BACK_EVERY == HELD_BACK_EVERY - 1)
    gathered.fitting.add(rows[~held].flatten(0, 1))
    gathered.held_back.add(rows[held].flatten(0, 1))
    keys = [image.key for image, out in zip(images, held.tolist(), strict=True) if out]
    if keys:
        copies = range(rows.shape[1])
        lots = [_lot(seed, key, copy) for key in keys for copy in copies]
        gathered.sample.add(torch.tensor(lots, device="cpu"), rows[held].flatten(0, 1))


def _lot(seed: int, key: str, copy: int) -> int:
    # Bytes that the copy's own random numbers do not start from alone; 63 bits fit int64.
    return int.from_bytes(digest(seed, f"sample {key}", copy)[:8], "little") >> 1
