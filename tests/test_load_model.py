# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: every known nesting and prefix loads, everything else is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fiqa_fast import CheckpointError, FaceViT, Scorer, ViTConfig, load_model
from fiqa_fast.models import state_dict_sha256
from fiqa_fast.models.gauge import file_sha256
from fiqa_fast.models.loading import _resolve, borrow_model
from fiqa_fast.models.registry import ARCHITECTURES

CONFIG = ViTConfig(patch_size=28, embed_dim=16, depth=2, num_heads=2, mlp_ratio=3, num_classes=8)
HEADS = {"num_heads": 2}


def make_state(config: ViTConfig = CONFIG) -> dict[str, torch.Tensor]:
    model = FaceViT(config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return make_state()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "model.pt"
        torch.save(content, path)
        return path

    return write


def refusal(path: Path, architecture: Any = HEADS) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, architecture)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    return text


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.net.", "module.net.", "model."])
@pytest.mark.parametrize(
    "nest",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict_backbone": s, "epoch": 1},
        lambda s: {"model": {"state_dict": s}, "optimizer": {"lr": 0.1}},
    ],
)
def test_nestings_and_prefixes(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path], prefix: str, nest: Any
) -> None:
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    model = load_model(save(nest(prefixed)), HEADS)
    assert model.config == CONFIG
    assert not model.training
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, state[name])


def test_safetensors_with_metadata(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    half = {f"net.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, path, {"architecture": json.dumps({"num_heads": 4, "layout": "cvlface"})})
    model = load_model(path)
    assert model.config.num_heads == 4
    assert model.blocks[0].attn.qkv.weight.dtype == torch.float32
    assert load_model(path, {"num_heads": 8}).config.num_heads == 8  # the caller's word counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_digests(
    state: dict[str, torch.Tensor], tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    path = tmp_path / f"m.{suffix}"
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    state["feature.1.num_batches_tracked"] = torch.tensor(7)  # left out of the digest
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    for load in (load_model, borrow_model):
        model = load(path, HEADS)
        assert model.checkpoint_sha256 == file_sha256(path)
        assert model.checkpoint_state_sha256 == state_dict_sha256(model)


@pytest.mark.parametrize("engine", ["native", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("method", "head", "outputs"),
    [
        ("attn-fiqa", None, ("score", "patch_map", "head_maps", "exit_maps", "embedding")),
        ("vit-fiqa", "crfiqa", ("score", "embedding")),
        ("ex-fiqa", "token", ("score", "exit_scores", "embedding")),
        ("ex-fiqa", "full", ("score", "exit_scores")),
    ],
)
def test_a_scorer_of_a_borrowed_model_keeps_nothing_of_it(
    tmp_path: Path,
    method: str,
    head: str | None,
    outputs: tuple[str, ...],
    suffix: str,
    dtype: str,
    engine: str,
) -> None:
    path = tmp_path / f"m.{suffix}"
    state = make_state(dataclasses.replace(CONFIG, quality_head=head))
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    images = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    settings: dict[str, Any] = {"outputs": outputs, "dtype": dtype, "engine": engine}
    wanted = Scorer(load_model(path, HEADS), method, **settings)
    model = borrow_model(path, HEADS)
    scorer = Scorer(model, method, **settings)
    assert scorer.describe() == wanted.describe()
    for tensor in model.state_dict().values():  # the mapping is private: so not the file's
        tensor.zero_()
    before, after = wanted(images), scorer(images)
    for name in outputs:
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert torch.equal(load_model(path, HEADS).pos_embed, state["pos_embed"])


def test_a_copy_of_a_borrowed_model_is_not_borrowed(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    model = borrow_model(save(state), HEADS)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.pos_embed.add_(1)
        digest = Scorer(copied).describe()["state_sha256"]
        assert digest == state_dict_sha256(copied) != model.checkpoint_state_sha256


def test_a_loaded_model_is_ones_own(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(state, path)
    model = load_model(path, HEADS)
    model.pos_embed.add_(1)
    scorer = Scorer(model)
    assert scorer.describe()["state_sha256"] != model.checkpoint_state_sha256
    path.write_bytes(b"")  # a mapping of it would end the process
    assert state_dict_sha256(model) == scorer.describe()["state_sha256"]
    assert torch.equal(model.pos_embed, state["pos_embed"] + 1)


def test_safetensors_under_another_name(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "m.bin")
    assert load_model(tmp_path / "m.bin", HEADS).config == CONFIG


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in ("arcface_vit_h",)])
def test_registered_architectures_are_recognised(name: str, tmp_path: Path) -> None:
    """By shapes alone, with an embedding width of their own choice."""
    config = dataclasses.replace(ARCHITECTURES[name].config, num_classes=16)
    with torch.device("meta"):
        shapes = FaceViT(config).state_dict()
    assert _resolve(tmp_path, shapes, {}) == config


def test_registered_name_as_architecture(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    text = refusal(save(state), "cvlface_vit_small")
    assert "missing" in text
    assert "blocks.2" in text
    assert "mis-shaped" in text
    assert "pos_embed" in text
    assert "cvlface_vit_base" in refusal_of(save(state), "vit_xl")


@pytest.mark.parametrize("head", [None, "token", "crfiqa", "full"])
def test_a_registered_name_leaves_the_quality_head_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str | None
) -> None:
    config = dataclasses.replace(CONFIG, num_classes=16, quality_head=head)
    entry = dataclasses.replace(ARCHITECTURES["starter"], config=CONFIG)
    monkeypatch.setitem(ARCHITECTURES, "tiny", entry)
    torch.save(make_state(config), tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", "tiny").config == config


def test_numbers_of_numpy(state: dict[str, torch.Tensor], save: Callable[[Any], Path]) -> None:
    architecture = {"num_heads": np.int64(2), "mlp_ratio": np.float32(3), "qkv_bias": np.False_}
    assert load_model(save(state), architecture).config == CONFIG


def test_qkv_bias_is_seen(save: Callable[[Any], Path]) -> None:
    config = ViTConfig(28, 16, 2, 2, 3, num_classes=8, qkv_bias=True)
    assert load_model(save(make_state(config)), HEADS).config == config


def test_mask_token_is_allowed_and_batch_counters_may_be_missing(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    state["mask_token"] = torch.zeros(1, 1, 16)
    del state["feature.1.num_batches_tracked"]
    assert load_model(save(state), HEADS).config == CONFIG


def test_ambiguous_heads(state: dict[str, torch.Tensor], save: Callable[[Any], Path]) -> None:
    text = refusal(save(state), None)
    assert "number of heads" in text
    assert "architecture=" in text


def test_missing_unexpected_misshaped(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    del state["norm.weight"]
    state["cls_token"] = torch.zeros(1, 1, 16)
    state["blocks.1.norm1.bias"] = torch.zeros(15)
    text = refusal(save(state))
    assert re.search(r"missing norm\.weight", text)
    assert re.search(r"unexpected cls_token", text)
    assert re.search(r"mis-shaped blocks\.1\.norm1\.bias \[15\] where \[16\]", text)


def test_keys_outside_the_prefix_are_unexpected(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    prefixed = {f"net.{name}": tensor for name, tensor in state.items()}
    prefixed["classifier.weight"] = torch.zeros(2)
    assert "unexpected classifier.weight" in refusal(save(prefixed))


def test_two_models_inside(state: dict[str, torch.Tensor], save: Callable[[Any], Path]) -> None:
    assert "2 ViTs" in refusal(save({"model": state, "state_dict": state}))


def test_not_a_face_vit(save: Callable[[Any], Path]) -> None:
    assert "patch_embed.proj.weight" in refusal(save({"conv1.weight": torch.zeros(2)}))
    assert "no face ViT" in refusal(save({}))
    assert "list" in refusal(save([1, 2]))
    odd = {"patch_embed.proj.weight": torch.zeros(3)}
    assert "not a face ViT" in refusal(save(odd))


def test_a_made_up_depth_costs_nothing(save: Callable[[Any], Path]) -> None:
    made_up = {
        "patch_embed.proj.weight": torch.zeros(16, 3, 28, 28),
        "blocks.999999999.norm1.weight": torch.zeros(16),
    }
    assert "unexpected blocks.999999999.norm1.weight" in refusal(save(made_up))
    for huge in ({"depth": 10**9}, {"depth": 10**5}, {"img_size": 10**30}, {"mlp_ratio": 10**400}):
        assert "must be" in refusal(save(made_up), huge)


def test_a_tensor_that_claims_more_than_the_file_holds(save: Callable[[Any], Path]) -> None:
    state = {name: torch.zeros(()).expand(t.shape) for name, t in make_state().items()}
    assert "claims more values" in refusal(save(state))


def test_compressed_and_damaged_archives(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    path = save(state)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "compressed" in refusal(path)
    values = state["blocks.0.mlp.fc1.weight"].numpy().tobytes()
    whole[whole.find(values) + 5] ^= 64  # one flipped bit in the weights
    path.write_bytes(whole)
    assert "checksum" in refusal(path)


def test_both_with_and_without_the_prefix(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    prefixed["pos_embed"] = torch.zeros_like(state["pos_embed"])
    assert "unexpected pos_embed (outside module.)" in refusal(save(prefixed))


def test_names_and_paths_that_are_none(save: Callable[[Any], Path]) -> None:
    for path in (None, 3, "a\0b"):
        with pytest.raises(CheckpointError, match="path must be"):
            load_model(path)  # type: ignore[arg-type]
    for architecture in (3, [("num_heads", 2)]):
        assert "architecture must be" in refusal_of(save({}), architecture)
    odd = {"patch_embed.proj.weight": torch.zeros(3), "a\nb": torch.zeros(1)}
    refusal(save(odd))


def refusal_of(path: Path, architecture: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, architecture)
    return str(caught.value)


def test_negative_variances(state: dict[str, torch.Tensor], save: Callable[[Any], Path]) -> None:
    state["feature.1.running_var"][0] = -1
    assert "negative" in refusal(save(state))


@pytest.mark.parametrize("size", [0, 1, 7, 100, 0.5, -1])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_truncated(state: dict[str, torch.Tensor], tmp_path: Path, size: float, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    refusal(path)


def test_missing_file_folder_and_pointer(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pt")
    (tmp_path / "folder.pt").mkdir()
    refusal(tmp_path / "folder.pt")
    (tmp_path / "p.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(tmp_path / "p.pt")
    (tmp_path / "t.pt").write_text("just some words, not a checkpoint")
    refusal(tmp_path / "t.pt")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_pickled_code_is_not_run(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"state_dict": state, "extra": Bomb(marker)}, path)
    assert "pickled code" in refusal(path)
    assert "(found getattr)" in refusal(path)
    path.write_bytes(pickle.dumps(Bomb(marker)))
    refusal(path)
    assert not marker.exists()


def test_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(FaceViT(CONFIG), tmp_path / "module.pt")
    assert "state_dict" in refusal(tmp_path / "module.pt")


def test_values_that_are_no_weights(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    assert "NaN" in refusal(save({**state, "norm.bias": torch.full((16,), torch.nan)}))
    whole = {**state, "norm.bias": torch.zeros(16, dtype=torch.int64)}
    assert "floating" in refusal(save(whole))
    assert "tensors alone" in refusal(save({**state, "epoch": 3}))


@pytest.mark.parametrize(
    ("architecture", "word"),
    [
        ({"num_heads": 3}, "num_heads must divide"),
        ({"num_heads": 0}, "num_heads must be a whole number"),
        ({"num_heads": True}, "num_heads must be a whole number"),
        ({"num_heads": "2"}, "num_heads must be a whole number"),
        ({"num_heads": 2, "depth": 3}, "missing blocks.2"),
        ({"num_heads": 2, "depth": 1}, "unexpected blocks.1"),
        ({"num_heads": 2, "qkv_bias": True}, "missing blocks.0.attn.qkv.bias"),
        ({"num_heads": 2, "patch_size": 14}, "mis-shaped"),
        ({"num_heads": 2, "mlp_ratio": 4}, "mis-shaped blocks.0.mlp"),
        ({"num_heads": 2, "activation": "swish"}, "activation must be one of"),
        ({"heads": 2}, "unknown entry heads"),
        ({"num_heads": 2, "norm_layer": "bn"}, "unknown entry norm_layer"),
    ],
)
def test_wrong_architecture(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path], architecture: Any, word: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(word)):
        load_model(save(state), architecture)


def test_training_arguments_are_left_out(
    state: dict[str, torch.Tensor], save: Callable[[Any], Path]
) -> None:
    full = {"num_heads": 2, "img_size": 112, "norm_layer": "ln", "mask_ratio": 0.1}
    assert load_model(save(state), full).config == CONFIG


def test_metadata_is_checked(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for entry, word in (("[", "JSON"), ("[1]", "object"), ('{"num_heads": [2]}', "num_heads")):
        save_file(state, path, {"architecture": entry})
        assert word in refusal(path, None)
