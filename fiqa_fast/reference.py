# SPDX-License-Identifier: Apache-2.0
"""The equations, eager and readable, in float64 unless asked otherwise.

Slow on purpose and differentiable: every fast path is tested against these functions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fiqa_fast.ops import (
    AddLayerNorm,
    AttentionLogitsMean,
    AttentionLogitsStats,
    AttentionWithQuality,
    LogitsValues,
    MeanLayerNorm,
)

if TYPE_CHECKING:
    from fiqa_fast.models import FaceViT


def _layer_norm(
    x: Tensor,  # [..., D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    dtype: torch.dtype,
) -> Tensor:  # [..., D]
    x = x.to(dtype)
    centred = x - x.mean(dim=-1, keepdim=True)
    y = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    return y


def mean_layer_norm(
    x: Tensor,  # [B, N, D]
    weight: Tensor | None = None,  # [D]
    bias: Tensor | None = None,  # [D]
    eps: float = 1e-5,
    residual: Tensor | None = None,  # [B, N, D]
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # [B, D]
    """The mean over tokens of LayerNorm(x + residual)."""
    z = x if residual is None else x.to(dtype) + residual.to(dtype)
    return _layer_norm(z, weight, bias, eps, dtype).mean(dim=1)


def mean_layer_norm_map(
    x: Tensor,  # [B, N, D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    u: Tensor,  # [B, D]
    residual: Tensor | None = None,  # [B, N, D]
    dtype: torch.dtype = torch.float64,
) -> MeanLayerNorm:
    """The mean over tokens of LayerNorm(x + residual), and the product of each token's with u."""
    z = x if residual is None else x.to(dtype) + residual.to(dtype)
    y = _layer_norm(z, weight, bias, eps, dtype)
    return MeanLayerNorm(mean=y.mean(dim=1), map=(y * u.to(dtype)[:, None]).sum(dim=2))


def layer_norm_dot(
    x: Tensor,  # [B, N, D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    w: Tensor,  # [N, D]
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # [B]
    """The dot product of LayerNorm(x), all tokens of an image, with w.

    ViT-FIQA's C and full heads (arXiv 2508.13957) in evaluation mode, folded into w, up to a
    constant.
    """
    return (_layer_norm(x, weight, bias, eps, dtype) * w.to(dtype)).sum(dim=(1, 2))


def add_layer_norm(
    x: Tensor,  # [B, N, D]
    residual: Tensor,  # [B, N, D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    dtype: torch.dtype = torch.float64,
    mean_from: int | None = None,
    w: Tensor | None = None,  # [M, D]
) -> AddLayerNorm:
    """x + residual, its LayerNorm, the mean of that from a token on, and a dot product with w of
    the first tokens' LayerNorm without weight and bias."""
    sum = x.to(dtype) + residual.to(dtype)
    return AddLayerNorm(
        sum=sum,
        normed=_layer_norm(sum, weight, bias, eps, dtype),
        mean=None
        if mean_from is None
        else mean_layer_norm(sum[:, mean_from:], weight, bias, eps, dtype=dtype),
        dot=None if w is None else layer_norm_dot(sum[:, : len(w)], None, None, eps, w, dtype),
    )


def batch_invariant_linear(
    x: Tensor,  # [B, K]
    weight: Tensor,  # [O, K]
    bias: Tensor | None = None,  # [O]
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # [B, O]
    """A linear layer."""
    out = x.to(dtype) @ weight.to(dtype).T
    return out if bias is None else out + bias.to(dtype)


def attention_logits_mean(
    q: Tensor,  # [B, H, Nq, d]
    k: Tensor,  # [B, H, Nk, d]
    scale: float,
    dtype: torch.dtype = torch.float64,
) -> AttentionLogitsMean:
    """Means of the attention logits (ATTN-FIQA, arXiv 2604.22841), from the full H Nq Nk logits."""
    q, k = q.to(dtype), k.to(dtype)
    logits = scale * q @ k.transpose(-2, -1)  # [B, H, Nq, Nk]
    return AttentionLogitsMean(
        head_scores=logits.mean(dim=(2, 3)),
        key_map=logits.mean(dim=(1, 2)),
        query_map=logits.mean(dim=(1, 3)),
        q_mean=q.mean(dim=2),
    )


def attention_logits_stats(
    q: Tensor,  # [B, H, Nq, d]
    k: Tensor,  # [B, H, Nk, d]
    scale: float,
    stats: Sequence[str] = ("moments",),
    heads: str = "all",
    dtype: torch.dtype = torch.float64,
) -> AttentionLogitsStats:
    """Statistics of the attention logits, from the full H Nq Nk logits."""
    logits = scale * q.to(dtype) @ k.to(dtype).transpose(-2, -1)  # [B, H, Nq, Nk]
    if heads == "average":
        logits = logits.mean(dim=1, keepdim=True)
    moments = "moments" in stats or "centered_variance" in stats
    softmax = "softmax" in stats
    centered = _centered(logits) if "centered_variance" in stats else None

    def values(dim: tuple[int, ...]) -> LogitsValues:
        variance = logits.var(dim=dim, correction=0)
        n = math.prod([logits.shape[axis] for axis in dim])
        return LogitsValues(
            mean=logits.mean(dim=dim),
            max=logits.amax(dim=dim),
            min=logits.amin(dim=dim),
            variance=variance,
            unbiased_variance=variance * n / (n - 1) if n > 1 else variance * torch.nan,
            row_variance=logits.var(dim=3, correction=0).mean(dim=dim[:-1]),
            centered_variance=None if centered is None else centered.square().mean(dim=dim),
        )

    return AttentionLogitsStats(
        head=values((2, 3)) if moments else None,
        image=values((1, 2, 3)) if moments else None,
        key_map=logits.mean(dim=(1, 2)) if moments else None,
        query_map=logits.mean(dim=(1, 3)) if moments else None,
        logsumexp=logits.logsumexp(dim=3) if softmax else None,
        entropy=-(logits.softmax(dim=3) * logits.log_softmax(dim=3)).sum(dim=3)
        if softmax
        else None,
        median=logits.flatten(1).median(dim=1).values if "median" in stats else None,
    )


def attention_with_quality(
    q: Tensor,  # [B, H, Nq, d]
    k: Tensor,  # [B, H, Nk, d]
    v: Tensor,  # [B, H, Nk, e]
    scale: float,
    dtype: torch.dtype = torch.float64,
) -> AttentionWithQuality:
    """Attention and the means of its logits (ATTN-FIQA, arXiv 2604.22841)."""
    logits = scale * q.to(dtype) @ k.to(dtype).transpose(-2, -1)  # [B, H, Nq, Nk]
    output = logits.softmax(dim=3) @ v.to(dtype)
    return AttentionWithQuality(output, logits.mean(dim=(1, 2)), logits.mean(dim=(2, 3)))


def _centered(logits: Tensor) -> Tensor:  # [B, H, Nq, Nk]
    """The doubly centred logits, without the means of rows and columns."""
    rows, columns = logits.mean(dim=3, keepdim=True), logits.mean(dim=2, keepdim=True)
    return logits - rows - columns + logits.mean(dim=(2, 3), keepdim=True)


def reduce_logits(
    logits: Tensor,  # [B, H, N, N]
    reduction: str = "mean",
    heads: str | int = "all",
) -> Tensor:  # [B]
    """ATTN-FIQA's score (arXiv 2604.22841) from logits in memory, by any reduction and heads.

    ``heads="average"`` averages the heads' matrices first. ``row_variance`` and
    ``centered_variance`` (the variance within rows, and of the doubly centred logits: biased,
    averaged over heads) are fiqa_fast's own.
    """
    if heads == "average":
        logits = logits.mean(dim=1, keepdim=True)
    elif heads != "all":
        logits = logits[:, int(heads)].unsqueeze(1)
    if reduction == "row_variance":
        return logits.var(dim=3, correction=0).mean(dim=(1, 2))
    if reduction == "centered_variance":
        return _centered(logits).square().mean(dim=(1, 2, 3))
    values = logits.flatten(1)
    if reduction == "mean":
        return values.mean(dim=1)
    if reduction == "median":
        return values.median(dim=1).values  # the lower median
    if reduction == "max":
        return values.amax(dim=1)
    if reduction == "inverse_std":
        return 1 / values.std(dim=1, correction=1)
    raise ValueError(f"no such reduction: {reduction!r}")


def block_logits(
    model: FaceViT,
    images: Tensor,  # [B, 3, S, S], normalised
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Every block's pre-softmax logits [B, H, N, N], from a forward pass that keeps them all."""
    model = copy.deepcopy(model).to(dtype)
    x = model.embed(images.to(dtype))
    kept = []
    for block in model.blocks:
        attention = block.attn
        projected = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
        q, k, v = projected.permute(2, 0, 3, 1, 4)  # [B, H, N, d]
        logits = attention.scale * q @ k.transpose(-2, -1)
        kept.append(logits)
        x = x + attention.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return kept
