# SPDX-License-Identifier: Apache-2.0
"""The gauge: per-block numbers that move the mean logit into a calibrated one.

Softmax does not see a constant added to a row of logits, so the key shift that a gauge stands for
changes nothing of the network, only the mean that ATTN-FIQA reads. With
``phi_l = (scale / H) [q_mean_1 ... q_mean_H]``,

    calibrated_l = scale_l * mean_l + phi_l . query_weight_l + offset_l

This calibration is fiqa_fast's own; no paper has it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import CheckpointError

SUFFIX = ".gauge.safetensors"
TENSORS = ("scale", "query_weight", "offset")


@dataclasses.dataclass(frozen=True, eq=False)
class GaugeRow:
    """A gauge's numbers of one block, ready for use in a traced forward."""

    scale: float
    query_weight: Tensor  # [D]
    offset: float

    def to(self, device: torch.device | str) -> GaugeRow:
        """The same numbers on ``device``."""
        return GaugeRow(self.scale, self.query_weight.to(device), self.offset)

    def calibrate(self, mean: Tensor, phi: Tensor) -> Tensor:
        """See :meth:`Gauge.calibrate`."""
        shift = (phi * self.query_weight.to(phi.device)).sum(-1) + self.offset
        return self.scale * mean + shift.view(-1, *[1] * (mean.dim() - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Gauge:
    """``scale`` [L], ``query_weight`` [L, D], ``offset`` [L], all float32 on the CPU.

    ``model_sha256`` names the model that it was fitted on: the SHA-256 of the checkpoint file's
    bytes, or with ``hash="state_dict"`` of :func:`state_dict_sha256`. ``architecture`` is what
    weights alone do not show of that model, such as ``num_heads``, as far as it is known. ``notes``
    say how it was fitted, as JSON would; nothing is computed from them.
    """

    scale: Tensor
    query_weight: Tensor
    offset: Tensor
    model_sha256: str
    hash: str = "file"
    source: str = ""
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def calibrate(self, block: int, mean: Tensor, phi: Tensor) -> Tensor:
        """Calibrated value(s) of block ``block`` (1-based).

        ``mean`` [B] or [B, N] (mean logits, or a key map), ``phi`` [B, D]: float32. A map is
        calibrated so that its mean over the tokens is the calibrated score.
        """
        return self.row(block).calibrate(mean, phi)

    def row(self, block: int) -> GaugeRow:
        """The numbers of block ``block`` (1-based)."""
        at = block - 1
        return GaugeRow(
            self.scale[at].item(), self.query_weight[at].clone(), self.offset[at].item()
        )

    def sha256(self) -> str:
        """Digest of the values, whatever file they came from."""
        digest = hashlib.sha256()
        for tensor in (getattr(self, name) for name in TENSORS):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_gauge(path: str | Path) -> Gauge:
    """Read a gauge file (safetensors).

    Raises:
        CheckpointError: not a gauge file, or one with wrong shapes or values that are not finite.
    """
    where = f"gauge {path}"
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise CheckpointError(f"{where}: wanted a file, got a folder, a pipe or a device")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            wanted = set(TENSORS)
            if names != wanted:
                raise CheckpointError(
                    f"{where}: wanted the tensors {sorted(wanted)}, got {sorted(names)[:6]}"
                )
            tensors = {name: file.get_tensor(name) for name in wanted}
    except FileNotFoundError:
        raise CheckpointError(f"{where}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{where}: not a readable safetensors file ({error})") from None
    return _checked(tensors, metadata, str(path))


def _checked(tensors: dict[str, Tensor], metadata: dict[str, str], path: str) -> Gauge:
    where = f"gauge {path}"
    scale, weight, offset = (tensors[name] for name in TENSORS)
    if (
        scale.dim() != 1
        or weight.dim() != 2
        or offset.shape != scale.shape
        or len(weight) != len(scale)
    ):
        raise CheckpointError(
            f"{where}: wanted scale [L], query_weight [L, D] and offset [L], got "
            f"{list(scale.shape)}, {list(weight.shape)} and {list(offset.shape)}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise CheckpointError(f"{where}: {name} must hold float32 values, got {tensor.dtype}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{where}: {name} must hold finite values, got NaN or infinity")
    if "model_sha256" not in metadata:
        raise CheckpointError(f"{where}: its metadata lacks model_sha256, the model it belongs to")
    kind = metadata.get("hash", "file")
    if kind not in ("file", "state_dict"):
        raise CheckpointError(f"{where}: hash must be file or state_dict, got {kind!r}")
    architecture = _json_object(metadata, "architecture")
    if architecture is None:
        raise CheckpointError(f"{where}: its architecture metadata must be a JSON object")
    # Notes are for readers: what cannot be read is no reason to refuse the numbers.
    notes = _json_object(metadata, "notes") or {}
    model = metadata["model_sha256"]
    return Gauge(scale, weight, offset, model, kind, path, architecture, notes)


def _json_object(metadata: Mapping[str, str], name: str) -> dict[str, Any] | None:
    try:
        value = json.loads(metadata.get(name, "{}"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def gauge_bytes(gauge: Gauge) -> bytes:
    """The safetensors file of a gauge: the same bytes for the same values and notes."""
    tensors = {name: getattr(gauge, name).contiguous() for name in TENSORS}
    metadata = {"model_sha256": gauge.model_sha256, "hash": gauge.hash}
    for name in ("architecture", "notes"):
        if entries := getattr(gauge, name):
            metadata[name] = json.dumps(entries, sort_keys=True)
    return _in_order(save(tensors, metadata))


def save_gauge(gauge: Gauge, path: str | Path) -> None:
    """Write a gauge file (safetensors) that :func:`load_gauge` reads back to the bit.

    The file appears whole or not at all; one of that name is replaced.

    Raises:
        OutputError: the file cannot be written there.
        CheckpointError: the gauge has wrong shapes or values that are not finite.
    """
    from ..gallery.atomic import write_atomically  # a gallery's files are written likewise

    _checked({n: getattr(gauge, n) for n in TENSORS}, {"model_sha256": "", "hash": gauge.hash}, "")
    write_atomically(path, gauge_bytes(gauge))


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its header sorted: the library's order changes from run to run."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of eight
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def check_gauge_shape(gauge: Gauge, depth: int, width: int) -> None:
    """What can be told of :func:`check_gauge` before a model's digest is known."""
    if list(gauge.query_weight.shape) != [depth, width]:
        raise CheckpointError(
            f"gauge {gauge.source}".strip() + f": wanted query_weight [{depth}, {width}] for this "
            f"model, got {list(gauge.query_weight.shape)}: it belongs to another model"
        )


def check_gauge(
    gauge: Gauge,
    model: nn.Module,
    depth: int,
    width: int,
    architecture: Mapping[str, Any],
    state_sha256: str | None = None,
) -> None:
    """Refuse a gauge that was not fitted on this very model.

    ``width`` is that of all heads' queries side by side, ``architecture`` what is known of the
    model beside its weights; ``state_sha256`` saves computing it anew.

    Raises:
        CheckpointError: other shapes, another file, weights changed since they were loaded, or
            loaded with another architecture than the file's own.
    """
    check_gauge_shape(gauge, depth, width)
    where = f"gauge {gauge.source}".strip()
    state = state_sha256 or state_dict_sha256(model)
    by_file = gauge.hash == "file"
    actual = getattr(model, "checkpoint_sha256", None) if by_file else state
    if actual != gauge.model_sha256:
        raise CheckpointError(
            f"{where}: belongs to another model ({gauge.hash} sha256 {gauge.model_sha256[:12]}..., "
            f"this one has {(actual or 'no file')[:12]}...); fit one for this model, or pass "
            "gauge=None (--gauge none) for published scores"
        )
    if by_file and getattr(model, "checkpoint_state_sha256", None) != state:
        raise CheckpointError(
            f"{where}: the model's weights were changed after loading, and it belongs to the "
            "file's; pass gauge=None for published scores"
        )
    if by_file and getattr(model, "checkpoint_config", None) != getattr(model, "config", None):
        raise CheckpointError(
            f"{where}: belongs to the model as its file describes it, and this one was loaded "
            "with another architecture; pass gauge=None (--gauge none) for published scores"
        )
    for name in sorted(gauge.architecture.keys() & architecture.keys()):
        fitted, found = gauge.architecture[name], architecture[name]
        if fitted != found:
            raise CheckpointError(
                f"{where}: fitted on these weights with {name} {fitted}, and this model has "
                f"{found}; fit one for this model, or pass gauge=None (--gauge none) for published "
                "scores"
            )


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def state_dict_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's state: sorted names, dtypes, shapes, contiguous little-endian bytes."""
    return tensors_sha256(sorted(module.state_dict().items()))


def tensors_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """:func:`state_dict_sha256` of tensors that come one by one, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in named:
        value = tensor.detach().cpu().contiguous()
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
