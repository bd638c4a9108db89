# SPDX-License-Identifier: Apache-2.0
"""The images that everyone is given: real ones, or random ones that differ in score."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import torch
from PIL import Image

from ..errors import ImageError
from ..gallery.errors import InputError
from ..gallery.sources import open_sources
from ..reading import Reading

__all__ = ["encoded_images", "pixels_of"]


def encoded_images(inputs: Sequence[str], size: int, count: int) -> list[bytes]:
    """Up to ``count`` encoded images: those of ``inputs`` that can be read, as they are, else
    random ones as JPEGs of ``size``.

    Raises :class:`InputError` where none can be read.
    """
    if not inputs:
        return [_jpeg(random_image(i, size)) for i in range(count)]
    reading = Reading(size)
    images: list[bytes] = []
    for item in itertools.chain.from_iterable(open_sources(inputs)):
        if len(images) == count:
            break
        try:
            with item.open() as file:
                data = file.read()
            reading(data)
        except (ImageError, OSError):
            continue  # not what is measured here
        images.append(data)
    if not images:
        raise InputError("wanted images to measure with, got none that can be decoded")
    return images


def pixels_of(images: Sequence[bytes], size: int, count: int) -> torch.Tensor:
    """uint8 RGB [count, 3, size, size]: decoded, and used again where they are fewer."""
    reading = Reading(size)
    planes = [torch.from_numpy(reading(image).planes) for image in images[:count]]
    return torch.stack(list(itertools.islice(itertools.cycle(planes), count)))


def random_image(number: int, size: int) -> torch.Tensor:  # uint8 [3, size, size]
    """One of a series from smooth to noise, so that their scores differ."""
    generator = torch.Generator().manual_seed(number)
    detail = (3, 6, 12, 25, 50, size)[number % 6]
    coarse = torch.rand(1, 3, detail, detail, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (fine[0] * 255).to(torch.uint8)


def _jpeg(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    return file.getvalue()
