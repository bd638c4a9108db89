# SPDX-License-Identifier: Apache-2.0
"""The built-in model and its gauge, against numbers computed in float64 by other code."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from fiqa_fast import FaceViT, Scorer, load_model

DATA = Path(__file__).parent / "data"
KINDS = {
    "published": {"gauge": None},
    "calibrated": {},
    "centered_variance": {"reduction": "centered_variance"},
}


@pytest.fixture(scope="module")
def starter() -> FaceViT:
    return load_model("starter")


@pytest.fixture(scope="module")
def synthetic() -> torch.Tensor:
    pixels = np.load(DATA / "parity" / "images_rgb_uint8.npy").transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def exits(model: FaceViT, images: torch.Tensor, kind: str, dtype: str = "float32") -> np.ndarray:
    scorer = Scorer(model, outputs=("exit_scores",), dtype=dtype, device="cpu", **KINDS[kind])
    scores = scorer(images).exit_scores
    assert scores is not None
    return scores.double().numpy()


def column_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error, each column in units of its largest value."""
    return float((np.abs(got - want).max(0) / np.abs(want).max(0)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_images_at_every_exit(
    starter: FaceViT, synthetic: torch.Tensor, kind: str
) -> None:
    expected = np.load(DATA / "starter_expected_synthetic.npz")
    assert column_error(exits(starter, synthetic, kind), expected[kind]) < 1e-4


def test_synthetic_embeddings(starter: FaceViT, synthetic: torch.Tensor) -> None:
    expected = np.load(DATA / "starter_expected_synthetic.npz")["embedding"]
    embedding = Scorer(starter, outputs=("embedding",), dtype="float32")(synthetic).embedding
    assert embedding is not None
    assert np.abs(embedding.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_default_score_is_calibrated(starter: FaceViT, synthetic: torch.Tensor) -> None:
    expected = np.load(DATA / "starter_expected_synthetic.npz")
    default = Scorer(starter, dtype="float32")(synthetic).score
    assert default is not None
    assert np.allclose(default, expected["calibrated"][:, -1], atol=1e-4)
    published = Scorer(starter, dtype="float32", gauge=None)(synthetic).score
    assert published is not None
    assert np.allclose(published, expected["published"][:, -1], atol=1e-4)


@pytest.fixture(scope="module")
def faces() -> tuple[torch.Tensor, list[dict[str, str]]]:
    import os

    data = os.environ.get("FIQA_FAST_TEST_DATA")
    if not data or not Path(data, "starter/expected_faces.csv").exists():
        pytest.skip("FIQA_FAST_TEST_DATA is not set, or holds no starter/expected_faces.csv")
    with open(Path(data, "starter/expected_faces.csv")) as file:
        rows = list(csv.DictReader(file))
    pixels = []
    for row in rows:
        with Image.open(Path(data, "faces/aligned112", row["path"])) as image:
            pixels.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(pixels)), rows


@pytest.mark.parametrize("kind", KINDS)
def test_real_faces_at_every_exit(
    starter: FaceViT, faces: tuple[torch.Tensor, list[dict[str, str]]], kind: str
) -> None:
    images, rows = faces
    depth = starter.config.depth
    expected = np.array([[float(r[f"{kind}_{i + 1}"]) for i in range(depth)] for r in rows])
    assert column_error(exits(starter, images, kind), expected) < 1e-4


def test_bfloat16_on_real_faces(
    starter: FaceViT, faces: tuple[torch.Tensor, list[dict[str, str]]]
) -> None:
    images, _ = faces
    for kind in ("published", "calibrated"):
        exact = exits(starter, images, kind)
        low = exits(starter, images, kind, "bfloat16")
        error = np.abs(low - exact)
        for column in range(exact.shape[1]):
            assert spearmanr(exact[:, column], low[:, column])[0] > 0.999
        if kind == "published":
            assert (error.max(0) / np.abs(exact).max(0)).max() < 5e-3
        else:
            assert np.quantile(error, 0.999, axis=0).max() < 5e-3
            assert error.max() < 1e-2


def test_notice_is_shipped() -> None:
    import fiqa_fast

    folder = Path(fiqa_fast.__file__).parent / "models" / "starter"
    assert "Apache-2.0" in (folder / "NOTICE").read_text()


def test_starter_warns_of_nothing(starter: FaceViT, synthetic: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(starter)(synthetic[:1])
