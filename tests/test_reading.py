# SPDX-License-Identifier: Apache-2.0
"""One rule from encoded bytes to planes: colours swapped or not, other sizes resized or refused."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import face, table
from PIL import Image

import fiqa_fast
from fiqa_fast.errors import ImageError
from fiqa_fast.images import load_image
from fiqa_fast.reading import Reading

SIDE = 24


def png(height: int = SIDE, width: int = SIDE, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (50, 31), (7, 24)])
def test_bgr_is_rgb_with_the_planes_swapped(shape: tuple[int, int]) -> None:
    data = png(*shape)
    rgb, bgr = Reading(SIDE)(data), Reading(SIDE, bgr=True)(data)
    assert not np.array_equal(rgb.planes[0], rgb.planes[2])
    assert np.array_equal(bgr.planes, rgb.planes[::-1])
    assert bgr.planes.flags.c_contiguous
    assert bgr.planes.shape == (3, SIDE, SIDE)
    assert rgb.resized == (shape != (SIDE, SIDE))


def test_another_size_is_refused_where_none_is_resized() -> None:
    reading = Reading(SIDE, resize=False)
    assert np.array_equal(reading(png()).planes, Reading(SIDE)(png()).planes)
    for height, width in ((SIDE, SIDE + 1), (SIDE - 1, SIDE), (60, 40), (1, 1)):
        with pytest.raises(ImageError, match=f"^wanted 24 x 24, got {width} x {height}$"):
            reading(png(height, width))
    with pytest.raises(ImageError, match=r"^wanted a JPEG"):  # what is no image has no size
        reading(b"no image")


def test_a_size_is_that_of_the_image_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    with pytest.raises(ImageError, match="got 12 x 30"):
        Reading(SIDE, resize=False)(png(12, 30, exif=exif))


def test_a_reading_says_what_it_does_and_travels() -> None:
    readings = [Reading(SIDE, bgr, resize) for bgr in (False, True) for resize in (False, True)]
    readings.append(Reading(SIDE + 1))
    facts = [reading.describe() for reading in readings]
    assert facts[2] == {"color": "bgr", "resize": "refused", "size": SIDE}
    assert facts[1] == {"color": "rgb", "resize": "bilinear", "size": SIDE}
    assert len({json.dumps(fact) for fact in facts}) == len(readings)
    assert [pickle.loads(pickle.dumps(reading)) for reading in readings] == readings


def test_score_with_red_and_blue_swapped(cli: Any, gallery: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "bgr.parquet", tmp_path / "rgb.parquet"
    outcome = cli("score", gallery, "-o", path, "--peer-bgr")
    assert outcome.status == 0, outcome.err
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    pixels = torch.stack([load_image(p, 112).flip(0) for p in sorted(gallery.iterdir())])
    expected = scorer(pixels).score
    assert expected is not None
    assert np.array_equal(np.float32([s for s, _ in table(path).values()]), expected.numpy())
    assert cli("score", gallery, "-o", other).status == 0
    assert not np.array_equal(np.float32([s for s, _ in table(other).values()]), expected.numpy())


def test_score_without_resizing(cli: Any, gallery: Path, tmp_path: Path) -> None:
    face(gallery / "3.png", 3, 96)
    path = tmp_path / "out.parquet"
    outcome = cli("score", gallery, "-o", path, "--no-resize")
    assert "6 of 7 images scored" in outcome.err
    assert "resized to" not in outcome.err
    errors = {key: error for key, (_, error) in table(path).items() if error}
    assert errors == {"3.png": "wanted 112 x 112, got 96 x 96"}
    assert cli("score", gallery, "--no-resize", "--strict", "--quiet").status == 1


def test_the_summary_says_how_busy_each_stage_was(cli: Any, gallery: Path) -> None:
    for workers, share in ((1, r" %, "), (3, r" % of 3 threads, ")):
        err = cli("score", gallery, "--workers", workers).err
        (line,) = [line for line in err.splitlines() if line.startswith("busy: ")]
        stages = line.removeprefix("busy: ")
        assert [part.split()[0] for part in stages.split(", ")] == [
            *("source", "decode", "model", "write")
        ]
        assert share in stages


def test_heatmap_reads_as_score_does(cli: Any, gallery: Path, tmp_path: Path) -> None:
    face(gallery / "3.png", 3, 96)
    path = tmp_path / "maps.npz"
    outcome = cli("heatmap", gallery, "-o", path, "--peer-bgr", "--no-resize")
    assert outcome.status == 0, outcome.err
    assert "3.png: wanted 112 x 112, got 96 x 96" in outcome.err
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"), outputs=("patch_map",))
    others = [p for p in sorted(gallery.iterdir()) if p.name != "3.png"]
    expected = scorer(torch.stack([load_image(p, 112).flip(0) for p in others])).patch_map
    assert expected is not None
    with np.load(path) as arrays:
        maps = next(arrays[name] for name in arrays.files if arrays[name].ndim == 3)
    assert np.array_equal(maps, expected.numpy())
