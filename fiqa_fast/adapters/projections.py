# SPDX-License-Identifier: Apache-2.0
"""An attention's query and key projections, recognised by its attributes.

Recognition only proposes; ``probe`` disposes: a copy whose forward deviates is refused there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .custom import HINT

_SEPARATE = (("q_proj", "k_proj"), ("query", "key"), ("q", "k"))
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
_KV_HEADS = ("num_kv_heads", "num_key_value_heads")
_SCALES = ("scale", "scaling")
_IDENTITY = (nn.Identity, type(None))

QUALITY_DTYPE = torch.float32


@dataclasses.dataclass(frozen=True)
class Projections:
    """Weights [A, D] and biases [A] or None of queries and keys, float32.

    ``packed`` are both weights in one, [2 A, D], where the module keeps them so.
    """

    q_weight: Tensor
    q_bias: Tensor | None
    k_weight: Tensor
    k_bias: Tensor | None
    packed: Tensor | None = None

    def both(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [..., A] of y [..., D]: one product instead of two, if packed."""
        if self.packed is None:
            q, k = F.linear(y, self.q_weight), F.linear(y, self.k_weight)
        else:
            q, k = F.linear(y, self.packed).tensor_split([len(self.q_weight)], dim=-1)
        q = q if self.q_bias is None else q + self.q_bias
        k = k if self.k_bias is None else k + self.k_bias
        return q, k


def is_attention(module: nn.Module) -> bool:
    """Whether the module has the attributes of a self-attention that we can read."""
    return _kind(module) is not None and (
        isinstance(module, nn.MultiheadAttention) or _first(module, _HEADS) is not None
    )


def _kind(module: nn.Module) -> tuple[str, ...] | None:
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj",)
    if isinstance(getattr(module, "qkv", None), nn.Linear):
        return ("qkv",)
    for names in _SEPARATE:
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
            return names
    return None


def _first(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(module, name, None)
        if type(value) is int and value > 0:
            return value
    return None


@dataclasses.dataclass(frozen=True)
class AttentionForm:
    """How to read one attention module; holds no tensors, so ``.to()`` and training are free.

    ``kind`` names the attributes that hold the projections, ``norms`` says whether q and k are
    normalised, ``rotary`` names the argument that holds a rotary embedding, and ``sequence_first``
    says that tokens come as [N, B, D].
    """

    kind: tuple[str, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    width: int  # D, channels of the attention's input
    scale: float
    norms: bool
    rotary: str | None
    sequence_first: bool

    @property
    def grouped(self) -> bool:
        return self.num_kv_heads != self.num_heads

    def projections(self, module: Any) -> Projections:
        """The current weights, cast to float32 (no copy where they are float32)."""
        q_size = self.num_heads * self.head_dim
        k_size = self.num_kv_heads * self.head_dim
        if self.kind in (("qkv",), ("in_proj",)):
            if self.kind == ("in_proj",):
                weight, bias = module.in_proj_weight, module.in_proj_bias
            else:
                qkv = _linear(module, "qkv")
                weight, bias = qkv.weight, qkv.bias
            packed = _float(weight[: q_size + k_size])
            weights = packed[:q_size], packed[q_size:]
            biases = (None, None) if bias is None else (bias[:q_size], bias[q_size:][:k_size])
        else:
            packed = None
            q, k = (_linear(module, name) for name in self.kind)
            weights, biases = (_float(q.weight), _float(k.weight)), (q.bias, k.bias)
        # timm's Eva and Beit keep the biases of a fused projection beside it.
        extra = getattr(module, "q_bias", None), getattr(module, "k_bias", None)
        q_bias, k_bias = (_sum(own, more) for own, more in zip(biases, extra, strict=True))
        return Projections(weights[0], q_bias, weights[1], k_bias, packed)

    def query_key(self, module: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        """Explicit q and k [B, H, N, d], float32, of the tokens y [B, N, D], normed and rotated."""
        q, k = self.projections(module).both(_float(y))
        if self.norms:
            q, k = self._normed(module.q_norm, q), self._normed(module.k_norm, k)
        else:
            q, k = self._split(q), self._split(k)
        if rope is not None:
            half = self.rotary != "rope" or bool(getattr(module, "rotate_half", False))
            q, k = (_rotate(t, _float(rope), half) for t in (q, k))
        if self.grouped:
            k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        return q, k

    def _normed(self, norm: Any, t: Tensor) -> Tensor:  # [B, N, A] -> [B, H, N, d]
        # Most norms are per head, some are over all heads together.
        sizes = getattr(norm, "normalized_shape", None) or getattr(norm, "weight", t[..., :0]).shape
        if sizes[-1:] == t.shape[-1:]:
            return self._split(_norm(norm, t))
        return _norm(norm, self._split(t))

    def _split(self, t: Tensor) -> Tensor:  # [B, N, A] -> [B, H, N, d]
        split: Tensor = t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return split


def read_form(module: Any, rotary: str | None) -> AttentionForm:
    """The form of a module that :func:`is_attention` accepts.

    Raises:
        UnsupportedModelError: sizes do not fit together, or MultiheadAttention options that move
            the logits.
    """
    kind = _kind(module)
    heads = _first(module, _HEADS)
    assert kind is not None
    assert heads is not None
    name = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is None:
            raise UnsupportedModelError(
                f"{name}: wanted one packed in_proj_weight, got keys or values of another size "
                f"(kdim, vdim); {HINT}"
            )
        if module.bias_k is not None or module.add_zero_attn:
            raise UnsupportedModelError(
                f"{name}: wanted the image's own keys only, got add_bias_kv or add_zero_attn; "
                f"{HINT}"
            )
        rows, width = module.in_proj_weight.shape
        packed = True
    elif kind == ("qkv",):
        rows, width = module.qkv.weight.shape
        packed = True
    else:
        rows, width = getattr(module, kind[0]).weight.shape
        packed = False
    parts = 3 * heads if packed else heads
    if rows % parts:
        raise UnsupportedModelError(
            f"{name}: wanted a projection to a multiple of {parts} features for {heads} heads, "
            f"got {rows}; {HINT}"
        )
    head_dim = rows // parts
    kv_rows = heads * head_dim if packed else getattr(module, kind[1]).weight.shape[0]
    kv_heads = kv_rows // head_dim
    if kv_heads * head_dim != kv_rows or heads % kv_heads:
        raise UnsupportedModelError(
            f"{name}: wanted key heads that divide {heads} query heads of size {head_dim}, "
            f"got {kv_rows} key features; {HINT}"
        )
    norms = [getattr(module, n, None) for n in ("q_norm", "k_norm")]
    scale = next(
        (float(v) for n in _SCALES if isinstance(v := getattr(module, n, None), float)),
        head_dim**-0.5,
    )
    return AttentionForm(
        kind=kind,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        width=width,
        scale=scale,
        norms=not all(isinstance(norm, _IDENTITY) for norm in norms),
        rotary=rotary,
        sequence_first=not getattr(module, "batch_first", True),
    )


def _linear(module: nn.Module, name: str) -> nn.Linear:
    """A projection, unless something that adds to it (LoRA) or replaces it took its place."""
    linear = getattr(module, name)
    if not isinstance(linear, nn.Linear):
        raise UnsupportedModelError(
            f"{type(module).__name__}: wanted {name} to be the Linear that it was when quality was "
            f"added, got {type(linear).__name__}; {HINT}"
        )
    return linear


def _float(t: Tensor) -> Tensor:
    return t.detach().to(QUALITY_DTYPE)


def _sum(own: Tensor | None, more: object) -> Tensor | None:
    if not isinstance(more, Tensor):
        return None if own is None else _float(own)
    return _float(more) if own is None else _float(own) + _float(more)


def _norm(norm: Any, t: Tensor) -> Tensor:
    """A per-head norm in float32 whatever the dtype of its weights."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(
            t,
            norm.normalized_shape,
            None if weight is None else _float(weight),
            None if bias is None else _float(bias),
            norm.eps,
        )
    if isinstance(norm, nn.RMSNorm):
        scale = None if weight is None else _float(weight)
        return F.rms_norm(t, norm.normalized_shape, scale, norm.eps)
    # Anything else computes in the dtype of its own weights.
    dtype = weight.dtype if isinstance(weight, Tensor) else t.dtype
    out: Tensor = norm(t.to(dtype))
    return _float(out)


def _rotate(t: Tensor, rope: Tensor, half: bool) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of as many last tokens as it has rows.

    ``rope`` [..., P, 2 d] holds sines, then cosines. ``half`` pairs feature i with i + d/2,
    otherwise with its neighbour.
    """
    prefix = t.shape[2] - rope.shape[-2]
    head, tail = t[:, :, :prefix], t[:, :, prefix:]
    sin, cos = rope.chunk(2, dim=-1)
    if half:
        first, second = tail.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-tail[..., 1::2], tail[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([head, tail * cos + turned * sin], dim=2)
