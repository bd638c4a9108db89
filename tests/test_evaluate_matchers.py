# SPDX-License-Identifier: Apache-2.0
"""Embeddings from matchers: an ONNX model whose answer is known, and the package's own models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import face, jpeg
from onnx_bytes import FLOAT, FLOAT16, INT64, UINT8, mean_colour, model

import fiqa_fast
from fiqa_fast.evaluate.readers.datasets import open_dataset
from fiqa_fast.evaluate.readers.embeddings import read_embeddings
from fiqa_fast.evaluate.readers.matchers import (
    MatcherInput,
    embed_images,
    open_matcher,
    parse_matcher_input,
)
from fiqa_fast.gallery import InputError, Item, open_sources
from fiqa_fast.images import decode

needs_onnx = pytest.mark.usefixtures("onnx_runtime")


@pytest.fixture
def onnx_runtime() -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


def images(folder: Path, n: int, size: int = 112) -> list[Item]:
    for i in range(n):
        face(folder / f"{i:03}.png", i, size)
    return [item for source in open_sources([folder]) for item in source]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def channel_means(items: Sequence[Item]) -> np.ndarray:
    means = []
    for item in items:
        with item.open() as file:
            means.append(decode(file).astype(np.float64).mean((0, 1)))
    return np.array(means)


@needs_onnx
@pytest.mark.parametrize("shape", [["n", 3, 112, 112], [1, 3, 112, 112], ["n", 3, "h", "w"]])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_onnx_model(tmp_path: Path, shape: list[Any], batch_size: int) -> None:
    path = write(tmp_path / "m.onnx", mean_colour(shape))
    items = images(tmp_path / "in", 9)
    got = embed_images(items, path, batch_size=batch_size)
    assert got.dtype == np.float32
    want = (channel_means(items) - 127.5) / 127.5
    assert np.abs(got - want).max() < 1e-5


@needs_onnx
def test_what_a_matcher_is_fed(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", mean_colour(["n", 3, "h", "w"]))
    items = images(tmp_path / "in", 3)
    inputs = parse_matcher_input("bgr,mean=10,scale=2,size=112")
    got = embed_images(items, open_matcher(path, inputs=inputs))
    assert np.abs(got - (channel_means(items)[:, ::-1] - 10) / 2).max() < 1e-4
    small = open_matcher(path, inputs=MatcherInput(size=64))
    assert small.size == 64
    fixed = write(tmp_path / "f.onnx", mean_colour([1, 3, 96, 96]))
    assert open_matcher(fixed).size == 96


@needs_onnx
def test_half_precision(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", mean_colour(["n", 3, 112, 112], FLOAT16))
    items = images(tmp_path / "in", 2)
    want = (channel_means(items) - 127.5) / 127.5
    assert np.abs(embed_images(items, path) - want).max() < 5e-3


S = ["n", 3, 8, 8]
REFUSED: dict[str, tuple[bytes, str]] = {
    "nhwc": (
        mean_colour(["n", 112, 112, 3]),
        "wanted an input [batch, 3, side, side], got [n, 112",
    ),
    "rectangle": (mean_colour(["n", 3, 112, 96]), "wanted square images, got [n, 3, 112, 96]"),
    "batch of four": (mean_colour([4, 3, 8, 8], batch=4), "export the model with a dynamic batch"),
    "vectors": (
        model([("Identity", "x", "y")], [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])]),
        "wanted an input [batch, 3, side, side], got [n, 3]",
    ),
    "bytes": (
        model([("Identity", "x", "y")], [("x", UINT8, S)], [("y", UINT8, S)]),
        "wanted an input of floats, got tensor(uint8)",
    ),
    "map alone": (
        model([("Identity", "x", "y")], [("x", FLOAT, S)], [("y", FLOAT, S)]),
        "wanted an output [1, features] of floats, got y [n, 3, 8, 8]",
    ),
    "whole numbers": (
        model([("Flatten", "x", "f"), ("Shape", "f", "y")], [("x", FLOAT, S)], [("y", INT64, [2])]),
        "wanted an output [1, features] of floats",
    ),
    "two inputs": (
        model([("Add", "x z", "y")], [("x", FLOAT, S), ("z", FLOAT, S)], [("y", FLOAT, S)]),
        "wanted a model with one input, got x, z",
    ),
    "no model": (b"not a model", "no readable ONNX model"),
    "empty": (b"", "no readable ONNX model"),
    "unknown operator": (
        model([("Nonsense", "x", "y")], [("x", FLOAT, S)], [("y", FLOAT, S)]),
        "no readable ONNX model",
    ),
}


@needs_onnx
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_no_matchers(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, text = REFUSED[name]
    with pytest.raises(InputError) as caught:
        open_matcher(write(tmp_path / "m.onnx", data))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'fiqa_fast\[evaluate\]'"):
        open_matcher(write(tmp_path / "m.onnx", b""))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colour=grey", "wanted colour=rgb or bgr, got grey"),
        ("mean=x", "'mean=x' cannot be read"),
        ("scale=0", "a scale other than 0"),
        ("mean=nan", "wanted finite numbers"),
        ("std=1", "wanted colour, mean, scale, size, each once"),
        ("rgb,bgr", "each once"),
        ("size=0", "wanted a size from 1 to 4096"),
    ],
)
def test_matcher_input_is_checked(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_matcher_input(text)


def test_matcher_input_is_read() -> None:
    assert parse_matcher_input("") == MatcherInput("rgb", 127.5, 127.5, 112)
    assert parse_matcher_input("color=BGR, mean=127.5,scale=128") == MatcherInput("bgr", scale=128)
    with pytest.raises(InputError, match="'starter' is none"):
        open_matcher("starter", inputs=MatcherInput())


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.images = 0
        self.lines: list[str] = []

    def update(self, images: int) -> None:
        self.images += images

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def close(self) -> None:
        pass


class Mean:
    """A matcher that sees channels, and none in black."""

    size = 112

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.double().mean((2, 3))


def test_images_that_cannot_be_embedded(tmp_path: Path) -> None:
    items = images(tmp_path / "in", 40)
    good = embed_images(items, Mean())
    items[7] = Item("broken.png", lambda: io.BytesIO(jpeg()[:500]))
    black = b"P6 112 112 255\n" + bytes(112 * 112 * 3)
    items[20] = Item("black.ppm", lambda: io.BytesIO(black))
    with pytest.raises(InputError, match="2 of 40 images cannot be embedded, for one broken"):
        embed_images(items, Mean(), batch_size=4)
    told = Told()
    marked = embed_images(items, Mean(), batch_size=4, missing="mark", progress=told)
    assert told.images == 40
    assert [line.split(":")[0] for line in told.lines] == ["broken.png", "black.ppm"]
    gone = np.isnan(marked).all(1)
    assert np.flatnonzero(gone).tolist() == [7, 20]
    assert np.array_equal(marked[~gone], good[~gone])
    with pytest.raises(InputError, match="1 of 1 images cannot be embedded"):
        embed_images([items[7]], Mean(), missing="mark")
    with pytest.raises(InputError, match="wanted images to embed, got none"):
        embed_images([], Mean())
    with pytest.raises(ValueError, match="missing must be"):
        embed_images(items, Mean(), missing="worst")


def test_a_matcher_that_fails(tmp_path: Path) -> None:
    class Fails(Mean):
        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out\nof luck")

    with pytest.raises(InputError, match="out of luck"):
        embed_images(images(tmp_path / "in", 1), Fails())


def test_a_checkpoint_as_matcher(tmp_path: Path) -> None:
    items = images(tmp_path / "in", 3)
    got = embed_images(items, open_matcher("starter", dtype="float32"))
    paths = [str(tmp_path / "in" / item.key) for item in items]
    scorer = fiqa_fast.Scorer(
        fiqa_fast.load_model("starter"), outputs=("embedding",), dtype="float32"
    )
    want = scorer(paths).embedding
    assert want is not None
    assert np.array_equal(got, want.numpy())
    with pytest.raises(fiqa_fast.CheckpointError):
        open_matcher(tmp_path / "gone.pt")


def test_images_of_a_pair_set(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "x.bin").write_bytes(pickle.dumps(([jpeg()] * 2, [True])))
    dataset = open_dataset(tmp_path / "x.bin")
    assert dataset.items is not None
    assert embed_images(dataset.items, Mean()).shape == (2, 3)


@needs_onnx
def test_the_shared_matcher(needs_data: Path) -> None:
    edgeface = needs_data / "models" / "edgeface_xs_fp32_from_int8.onnx"
    faces = needs_data / "faces"
    if not (edgeface.exists() and (faces / "crossq_protocol.csv").exists()):
        pytest.skip("FIQA_FAST_TEST_DATA holds no faces and models/edgeface_xs_fp32_from_int8.onnx")
    dataset = open_dataset(faces / "crossq_protocol.csv", root=faces / "aligned112")
    assert dataset.items is not None
    want = read_embeddings(faces / "reference_edgeface_xs_embeddings.npz", dataset.paths)[::10]
    got = embed_images(dataset.items[::10], edgeface)
    cosine = (want * got).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() > 0.9999
