# SPDX-License-Identifier: Apache-2.0
"""What an engine needs to know of a quality method.

An engine runs the blocks over groups of images and shows the method the residual stream at the
stages it asked for: stage l is the stream after l blocks, so stage 0 is the input of block 1. A
method keeps small values of what it saw, one row per image. When all groups are through, it turns
their rows into the results: many images at once, so that the weights behind the tokens are read
once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Values = dict[str, Tensor]  # per-image values by name, images first


# A LayerNorm's weight [D] and bias [D], None for ones and zeros, and eps.
Norm = tuple[Tensor | None, Tensor | None, float]


class Tap(NamedTuple):
    """What a norm of a stage's stream shall give on its way: see ``ops.add_layer_norm``.

    A mean or a dot product. ``norm`` is the next block's first norm, or another with that one's
    eps where only a dot product is taken. With ``enough`` this is all that is to be seen of the
    stage: the values are ``{"mean": ..}`` or ``{"dot": ..}``, and :meth:`QualityMethod.observe`
    need not be called.
    """

    norm: Norm
    mean_from: int | None = None
    w: Tensor | None = None
    enough: bool = False


class QualityMethod(Protocol):
    """A way to read quality off the residual stream of a ViT.

    Both functions are called from several threads, and in both an image's bits must not depend on
    the images beside it.
    """

    stages: frozenset[int]

    def tap(self, stage: int) -> Tap | None:
        """What :meth:`observe` can use of a norm of the stage's stream."""
        ...

    def observe(self, stage: int, x: Tensor, tapped: Values) -> Values:
        """Values of x [B, N, D], float32, the stream after ``stage`` blocks. ``tapped`` has the
        tap's ``mean`` and ``dot``, or is empty; results are the same, bit for bit."""
        ...

    def finish(self, observed: dict[int, Values]) -> Values:
        """Results by output name from what :meth:`observe` returned at every stage, for any number
        of images."""
        ...


def image_by_image(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function`` of each image by itself on a CPU, where a library may choose its order of
    additions by the shape; a GPU gets groups of one fixed shape, and keeps them."""
    if tensors[0].device.type != "cpu" or len(tensors[0]) == 1:
        return function(*tensors)
    parts = zip(*(tensor.split(1) for tensor in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])
