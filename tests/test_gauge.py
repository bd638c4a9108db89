# SPDX-License-Identifier: Apache-2.0
"""The gauge: where it applies, what it changes, and whose it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fiqa_fast
from fiqa_fast import CheckpointError, FaceViT, Gauge, Scorer, ViTConfig, load_gauge, load_model
from fiqa_fast.models import state_dict_sha256
from fiqa_fast.models.gauge import file_sha256
from fiqa_fast.models.loading import STARTER

ALL = ("score", "patch_map", "query_map", "head_scores", "exit_scores")


@pytest.fixture(scope="module")
def starter() -> FaceViT:
    return load_model("starter")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)


def test_formula_from_published_outputs(starter: FaceViT, images: torch.Tensor) -> None:
    """calibrated = scale mean + phi . query_weight + offset, the queries taken by hooks."""
    gauge = Scorer(starter).gauge
    assert gauge is not None
    queries: list[torch.Tensor] = []
    model = load_model("starter").double()
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(
            lambda _m, _i, out: queries.append(out[..., : model.config.embed_dim].mean(1))
        )
    model((images.double() / 255 - 0.5) / 0.5)
    published = Scorer(starter, outputs=("exit_scores",), dtype="float32", gauge=None)(images)
    calibrated = Scorer(starter, outputs=("exit_scores",), dtype="float32")(images)
    assert published.exit_scores is not None
    assert calibrated.exit_scores is not None
    config = model.config
    for number, q_mean in enumerate(queries):
        phi = config.head_dim**-0.5 / config.num_heads * q_mean
        want = (
            gauge.scale[number].double() * published.exit_scores[:, number]
            + phi @ gauge.query_weight[number].double()
            + gauge.offset[number]
        )
        assert torch.allclose(calibrated.exit_scores[:, number].double(), want, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"exit": 3}, {"fusion": "uniform"}, {"fusion": "depth"}])
def test_map_and_score_agree(starter: FaceViT, images: torch.Tensor, options: dict) -> None:
    result = Scorer(starter, outputs=ALL, dtype="float32", **options)(images)
    assert result.score is not None
    assert result.patch_map is not None
    assert torch.allclose(result.patch_map.mean((1, 2)), result.score, atol=1e-5)


def test_query_map_and_head_scores_stay_published(starter: FaceViT, images: torch.Tensor) -> None:
    with_gauge = Scorer(starter, outputs=ALL, dtype="float32")(images)
    without = Scorer(starter, outputs=ALL, dtype="float32", gauge=None)(images)
    assert torch.equal(with_gauge.query_map, without.query_map)
    assert torch.equal(with_gauge.head_scores, without.head_scores)
    assert not torch.equal(with_gauge.score, without.score)
    assert torch.allclose(without.head_scores.mean(1), without.score, atol=1e-6)


def test_auto_leaves_it_out_where_it_does_not_belong(starter: FaceViT) -> None:
    assert Scorer(starter).gauge is not None
    assert Scorer(starter, heads="average").gauge is not None  # the same mean
    assert Scorer(starter, heads=0).gauge is None
    assert Scorer(starter, reduction="max").gauge is None
    assert Scorer(starter, gauge=None).gauge is None


def test_by_name_with_another_reduction_is_an_error(starter: FaceViT) -> None:
    path = STARTER.with_name("starter_vit.gauge.safetensors")
    for options in ({"reduction": "median"}, {"heads": 1}):
        with pytest.raises(ValueError, match="mean over all heads"):
            Scorer(starter, gauge=path, **options)
        with pytest.raises(ValueError, match="mean over all heads"):
            Scorer(starter, gauge=load_gauge(path), **options)


def test_beside_a_checkpoint(starter: FaceViT, images: torch.Tensor, tmp_path: Path) -> None:
    shutil.copy(STARTER, tmp_path / "mine.safetensors")
    assert Scorer(load_model(tmp_path / "mine.safetensors")).gauge is None
    shutil.copy(
        STARTER.with_name("starter_vit.gauge.safetensors"), tmp_path / "mine.gauge.safetensors"
    )
    mine = Scorer(load_model(tmp_path / "mine.safetensors"), dtype="float32")
    assert mine.gauge is not None
    assert torch.equal(mine(images).score, Scorer(starter, dtype="float32")(images).score)


def write(path: Path, depth: int = 2, dim: int = 16, **metadata: str) -> Path:
    tensors = {
        "scale": torch.rand(depth),
        "query_weight": torch.rand(depth, dim),
        "offset": torch.rand(depth),
    }
    save_file(tensors, path, metadata)
    return path


def test_another_models_gauge_is_refused(starter: FaceViT, tmp_path: Path) -> None:
    other = write(tmp_path / "g.safetensors", 8, 256, model_sha256="0" * 64)
    with pytest.raises(CheckpointError, match="another model"):
        Scorer(starter, gauge=other)
    small = write(tmp_path / "s.safetensors", model_sha256=str(starter.checkpoint_sha256))
    with pytest.raises(CheckpointError, match="another model"):
        Scorer(starter, gauge=small)


def test_only_the_model_of_the_file(tmp_path: Path) -> None:
    """Neither other weights nor another architecture under the file's digest get its gauge."""
    changed = load_model("starter")
    changed.blocks[7].attn.qkv.weight.mul_(1.1)
    for model in (changed, load_model("starter", {"num_heads": 8})):
        with pytest.raises(CheckpointError, match="gauge=None"):
            Scorer(model)
        assert Scorer(model, gauge=None).gauge is None
    assert Scorer(load_model("starter", {"num_heads": 4})).gauge is not None  # as the file says


def test_gauge_of_a_module_without_a_file(tmp_path: Path, images: torch.Tensor) -> None:
    model = FaceViT(ViTConfig(28, 16, 2, 2, 3, num_classes=8))
    digest = state_dict_sha256(model)
    path = write(tmp_path / "g.safetensors", model_sha256=digest, hash="state_dict")
    assert Scorer(model, gauge=path)(images).score is not None
    with torch.no_grad():
        model.norm.bias += 1
    with pytest.raises(CheckpointError, match="another model"):
        Scorer(model, gauge=path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scale": torch.rand(3)}, "wanted scale"),
        ({"scale": torch.rand(2).double()}, "float32"),
        ({"offset": torch.tensor([0.0, torch.nan])}, "finite"),
        ({"extra": torch.rand(1)}, "wanted the tensors"),
    ],
)
def test_malformed(tmp_path: Path, change: dict[str, torch.Tensor], word: str) -> None:
    tensors = {
        "scale": torch.rand(2),
        "query_weight": torch.rand(2, 4),
        "offset": torch.rand(2),
        **change,
    }
    save_file(tensors, tmp_path / "g.safetensors", {"model_sha256": "x"})
    with pytest.raises(CheckpointError, match=word) as caught:
        load_gauge(tmp_path / "g.safetensors")
    assert "\n" not in str(caught.value)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_gauge(tmp_path / "absent")
    (tmp_path / "g").write_bytes(b"not a gauge")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_gauge(tmp_path / "g")
    with pytest.raises(CheckpointError, match="model_sha256"):
        load_gauge(write(tmp_path / "h.safetensors"))
    with pytest.raises(CheckpointError, match="hash"):
        load_gauge(write(tmp_path / "i.safetensors", model_sha256="x", hash="md5"))
    for text in ("[]", "{"):
        with pytest.raises(CheckpointError, match="architecture metadata must be a JSON object"):
            load_gauge(write(tmp_path / "j.safetensors", model_sha256="x", architecture=text))


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_exported() -> None:
    assert fiqa_fast.Gauge is Gauge


@pytest.mark.parametrize("load", [load_model, load_gauge])
def test_pipes_and_devices_are_not_opened(tmp_path: Path, load: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="wanted a file, got a folder, a pipe or a dev"):
            load(path)
