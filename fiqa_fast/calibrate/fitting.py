# SPDX-License-Identifier: Apache-2.0
"""A whole fit: from a subject and images to a gauge with notes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import torch

from ..degradations import TYPES
from ..gallery.errors import InputError
from ..gallery.progress import Progress, SilentProgress
from ..gallery.runner import default_workers
from ..models.gauge import Gauge
from ..workers import run_alone
from .crops import FEWEST_IMAGES, HELD_BACK_EVERY, Crop, Drawing, check_number, default_copies
from .gathering import Gathered, gather
from .solving import solve
from .state import StateFile
from .subject import Subject


def make_drawing(
    subject: Subject,
    images: int,
    copies: int | None = None,
    clean_share: float = 0.4,
    types: Iterable[str] = TYPES,
    seed: int = 0,
) -> Drawing:
    """The settings of a fit on so many images, checked.

    Raises:
        InputError: there are too few images.
        ValueError: a setting is out of range.
    """
    features = subject.width + 1
    names = (types,) if isinstance(types, str) else tuple(types)
    unknown = [name for name in names if name not in TYPES]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"types must be some of {', '.join(TYPES)}, each once, got {names}")
    if copies is not None and (type(copies) is not int or copies < 1):
        raise ValueError(f"copies must be a whole number from 1, got {copies!r}")
    if type(seed) is not int:
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if type(clean_share) not in (int, float) or not 0 <= clean_share < 1:
        raise ValueError(f"clean_share must be from 0 to below 1, got {clean_share!r}")
    copies = default_copies(images, features) if copies is None else copies
    check_number(images, features, copies)
    return Drawing(copies, float(clean_share), tuple(n for n in TYPES if n in names), seed)


def plan(subject: Subject, drawing: Drawing, images: str) -> dict[str, Any]:
    """Everything that decides a gauge's bytes, on one kind of machine; ``images`` names them."""
    return {
        "model": subject.model_sha256,
        "architecture": subject.architecture,
        **subject.describe,
        **dataclasses.asdict(drawing),
        "images": images,
        "fiqa_fast": version("fiqa_fast"),
        "torch": torch.__version__,
    }


def fit(
    subject: Subject,
    crops: Iterable[Crop],
    drawing: Drawing,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    on_error: Callable[[str, str], None] = lambda key, error: None,
    state: StateFile | None = None,
) -> Gauge:
    """Fit a gauge; with ``state``, go on from where it ends, and save it now and then.

    Raises:
        InputError: the images are too few, or give nothing to fit.
        OutputError: the state is of another fit, or cannot be written.
    """
    progress = SilentProgress() if progress is None else progress
    so_far = None if state is None else state.load()
    if so_far is not None:
        progress.tell(f"going on after {so_far.images + so_far.unread} images")
    try:
        gathered = gather(
            subject,
            crops,
            drawing,
            workers=default_workers() if workers is None else workers,
            progress=progress,
            on_error=on_error,
            so_far=so_far,
            after_chunk=lambda _: None if state is None else state.save(_),
        )
    finally:
        progress.close()
    return _gauge(subject, drawing, gathered)


def _gauge(subject: Subject, drawing: Drawing, gathered: Gathered) -> Gauge:
    if gathered.unread:
        try:
            check_number(gathered.images, subject.width + 1, drawing.copies)
        except InputError as error:
            raise InputError(
                f"{error}; {gathered.unread} more could not be read, such as {gathered.first_error}"
            ) from None
    fitting, held_back = gathered.fitting, gathered.held_back
    if fitting is None or held_back is None or not fitting.rows or not held_back.rows:
        raise InputError(
            f"wanted at least {FEWEST_IMAGES} images that can be read, every "
            f"{HELD_BACK_EVERY}th of them held back, got {gathered.images}"
        )
    scale, query_weight, offset, blocks = run_alone(lambda: solve(gathered))
    notes = {
        "fitted_by": f"fiqa_fast {version('fiqa_fast')}",
        "target": "cos(embedding(degraded), embedding(original))",
        **subject.describe,
        **dataclasses.asdict(drawing),
        "images": gathered.images,
        "images_unread": gathered.unread,
        "rows": fitting.rows + held_back.rows,
        "rows_held_back": held_back.rows,
        "rows_ranked": len(gathered.sample.lots),
        "blocks": blocks,
    }
    return Gauge(
        scale,
        query_weight,
        offset,
        subject.model_sha256,
        subject.hash,
        architecture=subject.architecture,
        notes=notes,
    )
