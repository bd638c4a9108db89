# SPDX-License-Identifier: Apache-2.0
"""The seven degradations: nothing at level 0, more at every level, and the levels of the data."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fiqa_fast.degradations import TYPES, degrade, parameter, random_degradation

SIZES = [(112, 112), (64, 48), (224, 224), (33, 112), (1, 1), (1, 7)]
# Levels between which every type does visibly more.
STEPS = (0.5, 1, 1.5, 2, 3, 4, 5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def texture(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    """Pixels with detail at all scales, as photographs have."""
    image = np.zeros((height, width, 3))
    for detail in (3, 7, 15, 30, 60):
        coarse = rng(seed + detail).integers(0, 256, (detail, detail, 3), np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(layer) / 255 / math.sqrt(detail)
    image -= image.min()
    return np.rint(image / image.max() * 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TYPES)
def test_any_size_keeps_its_shape_and_is_not_written_to(kind: str, size: tuple[int, int]) -> None:
    pixels = texture(0, *size)
    before = pixels.copy()
    pixels.flags.writeable = False
    assert degrade(pixels, kind, 0, rng()) is pixels
    for level in (1e-9, 0.3, 1, 3.7, 5):
        damaged = degrade(pixels, kind, level, rng())
        assert damaged.dtype == np.uint8
        assert damaged.shape == pixels.shape
        assert damaged.flags.c_contiguous
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("kind", TYPES)
def test_the_seed_decides(kind: str) -> None:
    pixels = texture(1)
    first = degrade(pixels, kind, 3, rng(7))
    assert np.array_equal(first, degrade(pixels, kind, 3, rng(7)))
    # A view with other strides holds the same pixels.
    assert np.array_equal(first, degrade(np.asfortranarray(pixels), kind, 3, rng(7)))
    random = kind in ("mblur", "noise", "occl")
    assert np.array_equal(first, degrade(pixels, kind, 3, rng(8))) != random


@pytest.mark.parametrize("kind", TYPES)
def test_next_to_level_0_is_nearly_nothing(kind: str) -> None:
    pixels = texture(2)
    damaged = degrade(pixels, kind, 1e-6, rng())
    if kind == "jpeg":  # the best that an encoder with halved chroma does
        assert psnr(damaged, pixels) > 35
    else:
        assert np.array_equal(damaged, pixels)


def check_falling(pixels: np.ndarray, kind: str, seed: int) -> None:
    quality = [psnr(degrade(pixels, kind, level, rng(seed)), pixels) for level in STEPS]
    assert quality == sorted(quality, reverse=True), (kind, seed, quality)
    assert quality[0] - quality[-1] > 4


@pytest.mark.parametrize("kind", TYPES)
def test_more_level_is_more_damage(kind: str) -> None:
    for seed in range(5):
        check_falling(texture(10 * seed), kind, seed)


@pytest.mark.parametrize("kind", TYPES)
def test_more_level_is_more_damage_of_a_photograph(kind: str, source_tree: Path) -> None:
    with Image.open(source_tree / "examples" / "crops" / "original.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    check_falling(pixels, kind, 0)
    twice = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC))
    if kind in ("gblur", "mblur", "down", "dark", "occl"):
        # Lengths grow with the image, so the damage is alike.
        small = psnr(degrade(pixels, kind, 4, rng(3)), pixels)
        assert psnr(degrade(twice, kind, 4, rng(3)), twice) == pytest.approx(small, abs=1)


def test_levels_are_interpolated() -> None:
    assert [parameter("gblur", level) for level in (0, 0.5, 1, 1.5, 5)] == [0, 0.4, 0.8, 1.1, 4.5]
    assert [parameter("jpeg", level) for level in (0, 1, 4.5)] == [100, 30, 6]


def test_blur_is_a_gaussian() -> None:
    pixels = texture(3, 100, 60)
    pixels[:, 30:] = 255  # an edge, where the tails count
    for level in (0.7, 2, 5):
        sigma = parameter("gblur", level) * math.sqrt(100 * 60) / 112
        expected = ndimage.gaussian_filter(
            pixels.astype(float), (sigma, sigma, 0), mode="mirror", truncate=6
        )
        error = np.abs(degrade(pixels, "gblur", level, rng()) - expected)
        assert error.max() < 2  # cut off at three sigma


def test_motion_turns_a_point_into_a_line() -> None:
    point = np.zeros((101, 101, 3), np.uint8)
    point[50, 50] = 255
    for seed in range(20):
        smear = degrade(point, "mblur", 3, rng(seed))[..., 0].astype(float)
        y, x = np.nonzero(smear)
        weight = smear[y, x]
        assert weight.sum() == pytest.approx(255, abs=12)  # rounded at every pixel
        assert np.average(y, weights=weight) == pytest.approx(50, abs=0.1)
        assert np.average(x, weights=weight) == pytest.approx(50, abs=0.1)
        along, across = np.linalg.eigvalsh(np.cov(y, x, aweights=weight, ddof=0))[::-1]
        length = 1 + (parameter("mblur", 3) - 1) * 101 / 112
        assert math.sqrt(12 * along) == pytest.approx(length, rel=0.06)
        assert across < 0.3


def test_reducing_to_a_divisor_averages_blocks() -> None:
    pixels = texture(4, 112, 112)
    reduced = degrade(pixels, "down", 1, rng())  # 56 x 56
    blocks = pixels.reshape(56, 2, 56, 2, 3).mean((1, 3))
    # Interpolation moves a block's mean by what its neighbours differ, which is little here.
    assert psnr(reduced.reshape(56, 2, 56, 2, 3).mean((1, 3)), blocks) > 40
    flat = np.full((50, 30, 3), 77, np.uint8)
    assert np.array_equal(degrade(flat, "down", 4.5, rng()), flat)


def test_noise_has_the_same_strength_anywhere() -> None:
    grey = np.full((224, 224, 3), 128, np.uint8)
    noise = degrade(grey, "noise", 2, rng()).astype(float) - 128
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(16 * math.hypot(0.63, 0.31), rel=0.03)
    assert 0.75 < np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1] < 0.85


def test_dark_is_a_power_of_the_value() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    dark = degrade(ramp, "dark", 3, rng())
    assert np.array_equal(dark, np.rint(255 * (ramp / 255) ** 3.4).astype(np.uint8))


def test_occlusion_is_one_rectangle_that_grows() -> None:
    pixels = texture(5, 90, 140)
    before = np.zeros((90, 140), bool)
    for seed in range(10):
        before[:] = False
        for level in (0.5, 1, 2.5, 5):
            damaged = degrade(pixels, "occl", level, rng(seed))
            changed = (damaged != pixels).any(2)
            y, x = np.nonzero(changed)
            box = damaged[y.min() : y.max() + 1, x.min() : x.max() + 1]
            assert len(np.unique(box.reshape(-1, 3), axis=0)) == 1
            share = box.shape[0] * box.shape[1] / before.size
            assert share == pytest.approx(parameter("occl", level), abs=0.02)
            assert changed[before].mean() > 0.99 if before.any() else True
            before = changed


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("fog", 1, "kind must be one of gblur, .*, got 'fog'"),
        ("gblur", -0.1, "level must be from 0 to 5, got -0.1"),
        ("gblur", 5.001, "level must be from 0 to 5"),
        ("gblur", math.nan, "level must be from 0 to 5, got nan"),
    ],
)
def test_other_types_and_levels_are_refused(kind: str, level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade(texture(0), kind, level, rng())


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be uint8 RGB \[H, W, 3\], got"):
        degrade(pixels, "dark", 1, rng())


def test_random_degradations() -> None:
    generator = rng(5)
    drawn = [random_degradation(generator, ("gblur", "occl"), 0.25) for _ in range(4000)]
    clean = [level for kind, level in drawn if kind is None]
    assert len(clean) / 4000 == pytest.approx(0.25, abs=0.03)
    assert set(clean) == {0.0}
    for kind in ("gblur", "occl"):
        levels = [level for name, level in drawn if name == kind]
        assert len(levels) / 4000 == pytest.approx(0.375, abs=0.03)
        assert min(levels) > 0
        assert max(levels) <= 5
        assert np.mean(levels) == pytest.approx(2.5, abs=0.15)
    assert random_degradation(generator, clean_share=1) == (None, 0.0)
    with pytest.raises(ValueError, match="got 'fog'"):
        random_degradation(generator, ("fog",))
    with pytest.raises(ValueError, match="got none"):
        random_degradation(generator, ())
    with pytest.raises(ValueError, match="clean_share must be from 0 to 1"):
        random_degradation(generator, clean_share=1.5)


def recorded(folder: Path, kind: str, most: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return (crop, degraded crop, level) of one type, a few of every level."""
    with open(folder / "lfw_degraded_index.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["type"] == kind]

    def read(name: str) -> np.ndarray:
        with Image.open(folder / "aligned112" / name) as image:
            return np.asarray(image.convert("RGB"))

    return [
        (read(row["source"]), read(row["path"]), int(row["level"]))
        for level in range(1, 6)
        for row in [row for row in rows if int(row["level"]) == level][:most]
    ]


# The recorded crops were saved as JPEG, which bounds the agreement; darkening was applied before
# the clean crops were saved, and steepens what that changed.
@pytest.mark.parametrize(("kind", "bar"), [("gblur", 43), ("down", 42), ("jpeg", 42), ("dark", 37)])
def test_whole_levels_are_those_of_the_data(needs_data: Path, kind: str, bar: float) -> None:
    quality = [
        psnr(degrade(crop, kind, level, rng()), degraded)
        for crop, degraded, level in recorded(needs_data / "faces", kind, 5)
    ]
    assert min(quality) > bar


# The damage of an occlusion depends on where it lies and on its colour.
@pytest.mark.parametrize(("kind", "bar"), [("mblur", 1), ("noise", 1), ("occl", 2)])
def test_random_types_are_as_strong_as_in_the_data(needs_data: Path, kind: str, bar: float) -> None:
    ours: dict[int, list[float]] = {}
    theirs: dict[int, list[float]] = {}
    for i, (crop, degraded, level) in enumerate(recorded(needs_data / "faces", kind, 15)):
        ours.setdefault(level, []).append(psnr(degrade(crop, kind, level, rng(i)), crop))
        theirs.setdefault(level, []).append(psnr(degraded, crop))
    for level in range(1, 6):
        assert abs(np.mean(ours[level]) - np.mean(theirs[level])) < bar, level
