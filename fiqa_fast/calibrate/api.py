# SPDX-License-Identifier: Apache-2.0
"""``fit_gauge``: any ViT and unlabelled face crops in, a gauge out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..degradations import TYPES
from ..errors import ImageError
from ..gallery.progress import Progress
from ..images import Pixels, fit, load_image
from ..models.gauge import Gauge
from ..models.vit import FaceViT
from .crops import Crop
from .fitting import fit as fit_subject
from .fitting import make_drawing
from .foreign import ForeignSubject
from .subject import FaceViTSubject, Subject

if TYPE_CHECKING:
    import PIL.Image

    ImageLike = str | Path | PIL.Image.Image | np.ndarray[Any, Any]


def fit_gauge(
    model: nn.Module,
    images: Tensor | Sequence[ImageLike],
    *,
    copies: int | None = None,
    clean_share: float = 0.4,
    types: Sequence[str] = TYPES,
    seed: int = 0,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "auto",
    preprocess: Callable[[Tensor], Any] | None = None,
    image_size: int | None = None,
    embedding: Callable[[Any], Tensor] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Gauge:
    """Fit a gauge: what turns every block's mean logit into an expected cosine.

    Every image is degraded ``copies`` times at random. For each block l, a ridge regression finds
    ``calibrated_l = scale_l mean_l + phi_l . query_weight_l + offset_l`` closest to
    cos(embedding(degraded), embedding(original)) over all copies. No labels are needed. The
    ridge's strength is chosen per block on every fifth image, held back; the gauge is then fitted
    on all. The model stays as it is. ``gauge.notes["blocks"]`` says how well each block does on
    the images held back. This calibration is fiqa_fast's own; no paper has it.

    Args:
        model: from :func:`fiqa_fast.load_model`, or any ViT that :func:`fiqa_fast.with_quality`
            knows. Of the latter, patch tokens alone count.
        images: uint8 RGB tensor [N, 3, H, W], or a list of paths, PIL images or RGB uint8 arrays
            [H, W, 3]: aligned face crops, of many people, mostly good. Read one by one; those that
            cannot be read are named in a warning and left out. Hundreds will do, thousands are
            better.
        copies: degraded copies per image; by default 4 to 24, for about 30 rows per feature of
            the model.
        clean_share: share of the copies that are left as they are, 0 to below 1.
        types: of degradations, see :data:`fiqa_fast.degradations.TYPES`.
        seed: of all that is random. Copies depend on it and on an image's place in ``images``
            alone. Neither threads nor batches change a bit of a :class:`FaceViT`'s gauge; others
            run as torch runs them, whose last bits may change with the number of threads.
        dtype: of the blocks' products, for :class:`FaceViT`; others compute in their own.
        device: for :class:`FaceViT`; others run where they are.
        preprocess: other ViTs only: from uint8 [B, 3, S, S] on the CPU to what the model takes;
            by default (x / 255 - 0.5) / 0.5 in the model's dtype, on its device.
        image_size: other ViTs only: S, pixels; by default what the model says of itself.
        embedding: other ViTs only: from the model's output to embeddings [B, E]; by default the
            mean patch token after the model's final norm.
        workers: threads that read and degrade images.
        progress: told of images as they are done.

    Raises:
        ValueError: an option is out of range, or the images are too few, all alike, or give the
            model nothing to tell apart.
        UnsupportedModelError: the model's structure gives no exact mean logits at some block.
    """
    subject: Subject
    if isinstance(model, FaceViT):
        for name, value in (
            ("preprocess", preprocess), ("image_size", image_size), ("embedding", embedding)
        ):  # fmt: skip
            if value is not None:
                raise ValueError(f"{name} belongs to other ViTs: a FaceViT brings its own")
        subject = FaceViTSubject(model, device, dtype)
    else:
        subject = ForeignSubject(
            model, preprocess=preprocess, image_size=image_size, embedding=embedding
        )
    crops = _Crops(images)
    drawing = make_drawing(subject, len(images), copies, clean_share, types, seed)
    return fit_subject(subject, crops, drawing, workers=workers, progress=progress, on_error=_warn)


def _warn(key: str, error: str) -> None:
    warnings.warn(f"fit_gauge leaves out image {key}: {error}", stacklevel=2)


class _Crops:
    """Images of the caller's, keyed by their place."""

    def __init__(self, images: Tensor | Sequence[ImageLike]) -> None:
        if isinstance(images, Tensor):
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
                raise ImageError(
                    "images must be uint8 RGB [N, 3, H, W], 0 to 255, got "
                    f"{images.dtype} {list(images.shape)}"
                )
        elif isinstance(images, (str, bytes, Path)) or not isinstance(images, Sequence):
            raise ImageError(
                "images must be a uint8 tensor [N, 3, H, W] or a list of paths, PIL images or "
                f"uint8 arrays [H, W, 3], got {type(images).__name__}"
            )
        elif any(isinstance(image, Tensor) for image in images):
            raise ImageError(
                "images must be paths, PIL images or uint8 arrays [H, W, 3], got a list with "
                "tensors: stack them to one, uint8 [N, 3, H, W]"
            )
        self.images = images

    def __iter__(self) -> Iterator[Crop]:
        for place in range(len(self.images)):
            yield Crop(str(place), partial(self._load, place))

    def _load(self, place: int, size: int) -> Pixels:
        image = self.images[place]
        if isinstance(image, Tensor):
            return fit(image.permute(1, 2, 0).cpu().numpy(), size).planes
        loaded: Pixels = load_image(image, size).numpy()
        return loaded
