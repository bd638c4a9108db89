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
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError

SUFFIX = ".gauge.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class GaugeRow:
    """A gauge's numbers of one block, ready for use in a traced forward."""

    scale: float
    query_weight: Tensor  # [D]
    offset: float

    def calibrate(self, mean: Tensor, phi: Tensor) -> Tensor:
        """See :meth:`Gauge.calibrate`."""
        shift = (phi * self.query_weight.to(phi.device)).sum(-1) + self.offset
        return self.scale * mean + shift.view(-1, *[1] * (mean.dim() - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Gauge:
    """``scale`` [L], ``query_weight`` [L, D], ``offset`` [L], all float32 on the CPU.

    ``model_sha256`` names the model that it was fitted on: the SHA-256 of the checkpoint file's
    bytes, or with ``hash="state_dict"`` of :func:`state_dict_sha256`.
    """

    scale: Tensor
    query_weight: Tensor
    offset: Tensor
    model_sha256: str
    hash: str = "file"
    source: str = ""

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
        for tensor in (self.scale, self.query_weight, self.offset):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_gauge(path: str | Path) -> Gauge:
    """Read a gauge file (safetensors).

    Raises:
        CheckpointError: not a gauge file, or one with wrong shapes or values that are not finite.
    """
    where = f"gauge {path}"
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            wanted = {"scale", "query_weight", "offset"}
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
    scale, weight, offset = (tensors[n] for n in ("scale", "query_weight", "offset"))
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
    return Gauge(scale, weight, offset, metadata["model_sha256"], kind, path)


def check_gauge(
    gauge: Gauge, model: nn.Module, depth: int, width: int, state_sha256: str | None = None
) -> None:
    """Refuse a gauge that was not fitted on this very model.

    ``width`` is that of all heads' queries side by side; ``state_sha256`` saves computing it anew.

    Raises:
        CheckpointError: other shapes, another file, weights changed since they were loaded, or
            loaded with another architecture than the file's own.
    """
    where = f"gauge {gauge.source}".strip()
    if list(gauge.query_weight.shape) != [depth, width]:
        raise CheckpointError(
            f"{where}: wanted query_weight [{depth}, {width}] for this model, got "
            f"{list(gauge.query_weight.shape)}: it belongs to another model"
        )
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


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def state_dict_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's state: sorted names, dtypes, shapes, contiguous little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        dtype = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
