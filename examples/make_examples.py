# SPDX-License-Identifier: Apache-2.0
"""Makes the images in crops/: one aligned face crop and degraded versions of it.

    pip install scikit-image pillow && python examples/make_examples.py

The photograph is NASA's portrait of astronaut Eileen Collins (public domain), as shipped in
scikit-image (``skimage.data.astronaut``). The crop is the similarity transform that brings her
landmarks onto the ArcFace template, as face recognition pipelines align their input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage import data

FOLDER = Path(__file__).parent / "crops"
SIZE = 112
# Eyes, nose and mouth corners in the photograph, and where the template has them.
LANDMARKS = [(200.1, 101.8), (247.1, 102.6), (220.4, 124.5), (198.6, 142.8), (239.7, 143.6)]
TEMPLATE = [
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
]


def aligned(photograph: Image.Image) -> Image.Image:
    """Template to photograph: x' = a x - b y + c, y' = b x + a y + d, by least squares."""
    rows, values = [], []
    for (x, y), (u, v) in zip(TEMPLATE, LANDMARKS, strict=True):
        rows += [(x, -y, 1, 0), (y, x, 0, 1)]
        values += [u, v]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    # Pillow's map takes pixel centres at +0.5.
    c, d = c + 0.5 - 0.5 * (a - b), d + 0.5 - 0.5 * (a + b)
    matrix = (a, -b, c, b, a, d)
    return photograph.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.BICUBIC)


def main() -> None:
    crop = aligned(Image.fromarray(data.astronaut()))
    pixels = np.asarray(crop, dtype=np.float32)
    rng = np.random.default_rng(0)

    def save(name: str, image: Image.Image | np.ndarray) -> None:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image.clip(0, 255).round().astype(np.uint8))
        image.save(FOLDER / f"{name}.png")

    save("original", crop)
    save("blur_1_mild", crop.filter(ImageFilter.GaussianBlur(1.2)))
    save("blur_2_strong", crop.filter(ImageFilter.GaussianBlur(3)))
    small = crop.resize((16, 16), Image.Resampling.BOX)
    save("low_resolution", small.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    save("noise", pixels + rng.normal(0, 45, pixels.shape))
    save("dark_1_mild", pixels * 0.3)
    save("dark_2_strong", pixels * 0.06)
    occluded = pixels.copy()
    occluded[60:112, 20:92] = 0
    save("occluded", occluded)
    crop.save(FOLDER / "jpeg.jpg", quality=4)


if __name__ == "__main__":
    main()
