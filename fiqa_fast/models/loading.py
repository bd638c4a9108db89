# SPDX-License-Identifier: Apache-2.0
"""``load_model``: a checkpoint becomes a :class:`FaceViT`, strictly."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..workers import begin_alone, run_alone, run_shared
from .checkpoint import LANDMARK, read_checkpoint
from .config import ViTConfig
from .gauge import file_sha256, tensors_sha256
from .registry import ARCHITECTURES, fingerprint
from .vit import FaceViT

STARTER = Path(__file__).parent / "starter" / "starter_vit.safetensors"

FIELDS = tuple(field.name for field in dataclasses.fields(ViTConfig))
# Constructor arguments of training code that leave evaluation unchanged.
TRAINING_ONLY = ("mask_ratio", "drop_path_rate", "drop_rate", "attn_drop_rate", "layout")
# Keys that some checkpoints carry and evaluation does not use, and those it can do without.
MAY_BE_EXTRA = ("mask_token",)
MAY_BE_MISSING = tuple(
    f"{norm}.num_batches_tracked" for norm in ("feature.1", "feature.3", "head_qs.0")
)

Architecture = str | Mapping[str, Any]


def load_model(path: str | Path, architecture: Architecture | None = None) -> FaceViT:
    """Load a face ViT for quality scoring: float32, on the CPU, in evaluation mode.

    Args:
        path: ``"starter"`` for the small model inside this package, or a checkpoint file:
            safetensors, or a ``torch.save`` of plain tensors, nested and prefixed as CVLface,
            insightface arcface_torch and DataParallel write them.
        architecture: a registered name (``fiqa-fast models`` lists them) or any of patch_size,
            embed_dim, depth, num_heads, mlp_ratio, num_classes, qkv_bias (also img_size,
            layer_norm_eps, activation, quality_head). What is not given comes from the
            ``architecture`` entry of the safetensors metadata, if any, else from the shapes;
            num_heads, which no shape shows, from the registered architecture of these shapes.

    Raises:
        CheckpointError: the file is unreadable, is not a face ViT, does not fit the architecture
            key by key, or leaves the number of heads open.
    """
    return _loaded(path, architecture, borrow=False)


def borrow_model(path: str | Path, architecture: Architecture | None = None) -> FaceViT:
    """As :func:`load_model`, for one who makes a scorer of it at once and nothing else.

    Its tensors may lie in the file itself: nobody may write to them, and they are not to be kept.
    So most of a large model is never copied, and a scorer need not look whether it was changed.
    """
    return _loaded(path, architecture, borrow=True)


def _loaded(path: str | Path, architecture: Architecture | None, borrow: bool) -> FaceViT:
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fspath(path):
        raise CheckpointError(f"path must be 'starter' or a file's path, got {path!r}")
    source = STARTER if str(path) == "starter" else Path(path)
    given = _given(architecture)
    state, metadata = run_alone(lambda: read_checkpoint(source))
    config, own_config = run_alone(lambda: _configs(source, given, state, metadata))
    with torch.device("meta"):
        model = FaceViT(config)
    wanted = sorted(model.state_dict().items())
    # The digests of what was read are found while the model is filled with it.
    file_digest = begin_alone(lambda: file_sha256(source))
    state_digest = begin_alone(
        lambda: tensors_sha256((name, _values(t, state.get(name))) for name, t in wanted)
    )
    try:
        run_alone(lambda: _fill(source, model, state, borrow))
        model.checkpoint_path, model.checkpoint_config = source, own_config
        model.checkpoint_sha256 = file_digest.result()
        model.checkpoint_state_sha256 = state_digest.result()
    finally:
        wait([file_digest, state_digest])  # the caller may do as it likes with the file
    model.checkpoint_borrowed = borrow
    return model


def _configs(
    source: Path, given: dict[str, Any], state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[ViTConfig, ViTConfig]:
    """What is wanted, and what the file says of itself."""
    described = _from_metadata(source, metadata)
    try:
        config = _resolve(source, state, {**described, **given})
    except CheckpointError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    try:
        return config, _resolve(source, state, described) if given else config
    except ValueError:  # the file leaves something open, which the caller had to say
        return config, config


def _given(architecture: Architecture | None) -> dict[str, Any]:
    if architecture is None:
        return {}
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"architecture must be one of {', '.join(ARCHITECTURES)}, or a dict such as "
                f'{{"num_heads": 8}} (--architecture num_heads=8); got {architecture!r}'
            )
        config = dataclasses.asdict(ARCHITECTURES[architecture].config)
        # Published with several embedding widths, and ViT-FIQA's models are these with a head.
        del config["num_classes"], config["quality_head"]
        return config
    if not isinstance(architecture, Mapping):
        raise CheckpointError(
            'architecture must be a registered name or a dict such as {"num_heads": 8}, got '
            f"{architecture!r}"
        )
    return _known(architecture, "architecture")


def _from_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "architecture" not in metadata:
        return {}
    try:
        entry = json.loads(metadata["architecture"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its architecture metadata is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: its architecture metadata must be a JSON object")
    return _known(entry, f"{path}: its architecture metadata")


def _known(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {}
    for name, value in entry.items():
        if isinstance(value, np.generic):
            value = value.item()
        if name in FIELDS:
            known[name] = value
        elif name == "mode":  # as ViT-FIQA's constructor calls it
            known["quality_head"] = value
        elif name in TRAINING_ONLY or (name == "norm_layer" and value == "ln"):
            continue
        else:
            raise CheckpointError(
                f"{where}: unknown entry {name}={value!r}; known are {', '.join(FIELDS)}"
            )
    return known


def _resolve(path: Path, state: Mapping[str, Tensor], stated: dict[str, Any]) -> ViTConfig:
    numbers = {**_from_shapes(path, state), **stated}
    heads = numbers.pop("num_heads", None)
    # Heads do not show in the keys: check everything else first, for the more telling message.
    config = ViTConfig(num_heads=1, **numbers)
    _check_keys(path, config, state)
    if heads is None:
        heads = _registered_heads(path, config)
    return dataclasses.replace(config, num_heads=heads)


def _from_shapes(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell; what a missing key leaves open is found by :func:`_check_keys`."""
    patch = state[LANDMARK]
    if patch.dim() != 4 or patch.shape[1] != 3 or patch.shape[2] != patch.shape[3]:
        raise CheckpointError(
            f"{path}: {LANDMARK} must be [D, 3, P, P], got {list(patch.shape)}: not a face ViT"
        )
    embed_dim, patch_size = patch.shape[0], patch.shape[2]
    # Counted, not read off the largest index: a made-up "blocks.999999999" must cost nothing.
    depth = max(1, len({k.split(".")[1] for k in state if k.startswith("blocks.")}))
    seen: dict[str, Any] = {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "mlp_ratio": 4,
    }
    fc1, head = state.get("blocks.0.mlp.fc1.weight"), state.get("feature.2.weight")
    if fc1 is not None and fc1.dim() == 2:
        hidden = fc1.shape[0]
        seen["mlp_ratio"] = hidden // embed_dim if hidden % embed_dim == 0 else hidden / embed_dim
    if head is not None and head.dim() == 2:
        seen["num_classes"] = head.shape[0]
    if any(key.startswith("head_qs.") for key in state):
        seen["quality_head"] = _quality_head(state, embed_dim)
    return seen


def _quality_head(state: Mapping[str, Tensor], embed_dim: int) -> str:
    """ViT-FIQA's variant: a quality token or none, and whether the embedding is made of it too."""
    if "qs_token" not in state:
        return "crfiqa"
    positions, feature = state.get("pos_embed"), state.get("feature.0.weight")
    if positions is None or positions.dim() != 3 or feature is None or feature.dim() != 2:
        return "token"
    return "full" if feature.shape[1] == positions.shape[1] * embed_dim else "token"


def _check_keys(path: Path, config: ViTConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in FaceViT(config).state_dict().items()}
    missing = [k for k in expected if k not in state and k not in MAY_BE_MISSING]
    unexpected = [k for k in state if k not in expected and k not in MAY_BE_EXTRA]
    misshaped = [
        f"{k} {list(state[k].shape)} where {list(shape)} was wanted"
        for k, shape in expected.items()
        if k in state and state[k].shape != shape
    ]
    problems = [
        f"{kind} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("mis-shaped", misshaped),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{path}: does not fit a face ViT of patch {config.patch_size}, dim "
            f"{config.embed_dim}, depth {config.depth}, img {config.img_size}: "
            f"{'; '.join(problems)}; choose another file, or name its architecture"
        )


def _registered_heads(path: Path, config: ViTConfig) -> int:
    matches = {
        entry.config.num_heads
        for entry in ARCHITECTURES.values()
        if entry.fingerprint == fingerprint(config)
    }
    if len(matches) == 1:
        return matches.pop()
    raise CheckpointError(
        f"{path}: ambiguous: the number of heads cannot be read from weights, and patch "
        f"{config.patch_size}, dim {config.embed_dim}, depth {config.depth}, mlp_ratio "
        f"{config.mlp_ratio:g} is no registered architecture; give it, for instance "
        'architecture={"num_heads": 8} (--architecture num_heads=8)'
    )


def _values(wanted: Tensor, value: Tensor | None) -> Tensor:
    """A tensor of the file as the model has it, uncopied where that is the same."""
    if value is None or not wanted.is_floating_point():  # a count of training's batches
        return torch.zeros(wanted.shape, dtype=wanted.dtype)
    return value.detach().to(torch.float32).contiguous()


def _fill(path: Path, model: FaceViT, state: Mapping[str, Tensor], borrow: bool) -> None:
    wanted = model.state_dict()
    filled = dict(wanted)
    names = sorted(wanted, key=lambda name: -wanted[name].numel())

    def fill(number: int) -> None:
        name = names[number]
        value = state.get(name)
        if wanted[name].is_floating_point() and (value is None or not value.is_floating_point()):
            got = "nothing" if value is None else str(value.dtype)
            raise CheckpointError(f"{path}: {name} must hold floating-point values, got {got}")
        values = _values(wanted[name], value)
        in_file = value is not None and values.data_ptr() == value.data_ptr()
        if in_file and not (borrow and values.data_ptr() % values.element_size() == 0):
            values = values.clone()
        if values.is_floating_point() and values.numel() > 0:
            _check_values(path, name, values)
        filled[name] = values

    run_shared(fill, len(names))
    model.load_state_dict(filled, strict=True, assign=True)
    model.requires_grad_(False).eval()


def _check_values(path: Path, name: str, values: Tensor) -> None:
    least, largest = values.aminmax()  # a NaN is both
    if not (least.isfinite() and largest.isfinite()):
        raise CheckpointError(f"{path}: {name} holds NaN or infinite values: damaged")
    if name.endswith("running_var") and least < 0:
        raise CheckpointError(f"{path}: {name} holds negative variances: damaged")
