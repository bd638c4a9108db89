# SPDX-License-Identifier: Apache-2.0
"""ATTN-FIQA's reductions of the logits A_h = s Q_h K_h^T to one value per image.

``mean`` never comes here: it factorises (see :mod:`fiqa_fast.quality.attn_fiqa`). The variances
come from d x d Gram matrices; the order statistics and ``inverse_std`` form the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

REDUCTIONS = ("mean", "median", "max", "inverse_std", "row_variance", "centered_variance")

Heads = str | int


def select_heads(q: Tensor, k: Tensor, scale: float, heads: Heads) -> tuple[Tensor, Tensor, float]:
    """The heads to reduce over, as q [B, H', N, d'], k [B, H', N, d'] and their scale.

    The head-averaged logits (1/H) sum_h s Q_h K_h^T are the logits of one head whose features are
    all heads' features side by side, with scale s / H.
    """
    if heads == "all":
        return q, k, scale
    if heads == "average":
        joined = [t.transpose(1, 2).flatten(2).unsqueeze(1) for t in (q, k)]
        return joined[0], joined[1], scale / q.shape[1]
    if not isinstance(heads, int):
        raise ValueError(f'heads must be "all", "average" or a head\'s number, got {heads!r}')
    return q[:, heads : heads + 1], k[:, heads : heads + 1], scale


def reduce_logits(q: Tensor, k: Tensor, scale: float, reduction: str) -> Tensor:
    """One value per image, [B], of q and k [B, H, N, d], in their dtype.

    median: the lower median of all H N^2 logits; inverse_std: 1 / standard deviation (n - 1) of
    all of them; row_variance: mean over rows and heads of a row's variance; centered_variance:
    the variance of the doubly centred logits s (q_i - q_mean) . (k_j - k_mean), fiqa_fast's own.
    """
    if reduction == "row_variance":
        return scale**2 * _inner(_gram(q), _gram(_centred(k)))
    if reduction == "centered_variance":
        return scale**2 * _inner(_gram(_centred(q)), _gram(_centred(k)))
    logits = (q @ k.transpose(-1, -2)).mul_(scale).flatten(1)  # [B, H N^2]
    if reduction == "mean":
        return logits.mean(1)
    if reduction == "median":
        return logits.median(1).values
    if reduction == "max":
        return logits.amax(1)
    if reduction == "inverse_std":
        return logits.std(1, correction=1).reciprocal()
    raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def _centred(t: Tensor) -> Tensor:
    return t - t.mean(2, keepdim=True)


def _gram(t: Tensor) -> Tensor:  # [B, H, N, d] -> [B, H, d, d]
    return t.transpose(-1, -2) @ t / t.shape[2]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius inner product per head, averaged over the heads: [B]."""
    return torch.mul(a, b).sum((-2, -1)).mean(1)
