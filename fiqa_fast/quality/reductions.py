# SPDX-License-Identifier: Apache-2.0
"""ATTN-FIQA's reductions of the logits A_h = s Q_h K_h^T to one value per image.

``mean`` never comes here: it factorises (see :mod:`fiqa_fast.quality.attn_fiqa`). The variances
come from d x d Gram matrices; median, max and ``inverse_std`` need every logit, a tile at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops

REDUCTIONS = ("mean", "median", "max", "inverse_std", "row_variance", "centered_variance")
OF_EVERY_LOGIT = ("median", "max", "inverse_std")

Heads = str | int


def reduce_logits(q: Tensor, k: Tensor, scale: float, reduction: str, heads: Heads) -> Tensor:
    """One value per image, [B], of q and k [B, H, N, d] float32.

    median: the lower median of all H N^2 logits; inverse_std: 1 / standard deviation (n - 1) of
    all of them; row_variance: mean over rows and heads of a row's variance; centered_variance:
    the variance of the doubly centred logits s (q_i - q_mean) . (k_j - k_mean), fiqa_fast's own.
    """
    if isinstance(heads, int):
        q, k = q[:, heads : heads + 1], k[:, heads : heads + 1]
    if reduction in OF_EVERY_LOGIT:
        return _of_every_logit(q, k, scale, reduction, "average" if heads == "average" else "all")
    if heads == "average":
        # (1/H) sum_h s Q_h K_h^T are the logits of one head whose features are all heads' features
        # side by side, with scale s / H.
        scale /= q.shape[1]
        q, k = (t.transpose(1, 2).flatten(2).unsqueeze(1) for t in (q, k))
    if reduction == "row_variance":
        return scale**2 * _inner(_gram(q), _gram(_centred(k)))
    return scale**2 * _inner(_gram(_centred(q)), _gram(_centred(k)))


def _of_every_logit(q: Tensor, k: Tensor, scale: float, reduction: str, heads: str) -> Tensor:
    if reduction == "median":
        median = ops.attention_logits_stats(q, k, scale, ("median",), heads).median
        assert median is not None
        return median
    image = ops.attention_logits_stats(q, k, scale, ("moments",), heads).image
    assert image is not None
    return image.max if reduction == "max" else image.unbiased_variance.rsqrt()


def _centred(t: Tensor) -> Tensor:
    return t - t.mean(2, keepdim=True)


def _gram(t: Tensor) -> Tensor:  # [B, H, N, d] -> [B, H, d, d]
    return t.transpose(-1, -2) @ t / t.shape[2]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius inner product per head, averaged over the heads: [B]."""
    return torch.mul(a, b).sum((-2, -1)).mean(1)
