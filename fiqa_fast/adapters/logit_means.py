# SPDX-License-Identifier: Apache-2.0
"""ATTN-FIQA (arXiv 2604.22841) of one attention in a foreign model, at two levels.

Input level, where q = y Wq + bq and k = y Wk + bk: with m the mean of y over the chosen tokens,

    q_mean = Wq m + bq,  k_mean = Wk m + bk,  head_score_h = s q_mean_h . k_mean_h
    key_map_j = (s / H) (y_j . Wk^T q_mean + bk . q_mean),  query map likewise

which costs N D + 2 D^2 multiply-adds. Query-key level, where q and k are normalised, rotated or an
adapter's: the same means by ``ops.attention_logits_mean``. All of it is float32 and without
gradient; the attention itself is not touched at either level.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .. import ops
from .projections import AttentionForm, Projections


@dataclasses.dataclass(frozen=True)
class LogitMeans:
    """Published means of the logits; maps cover the patch tokens alone."""

    head_scores: Tensor  # [B, H]
    key_map: Tensor | None  # [B, P]
    query_map: Tensor | None  # [B, P]
    phi: Tensor  # [B, A], (s / H) q_mean with the heads in order: what a gauge weighs

    def unless_masked(self, mask: Tensor) -> LogitMeans:
        """The same values, or NaN if the mask (True: attend; or added to the logits) hides any."""
        clear = mask.all() if mask.dtype == torch.bool else (mask == 0).all()
        poison = torch.where(clear, 0.0, float("nan"))

        def guarded(t: Tensor | None) -> Tensor | None:
            return None if t is None else t + poison

        return LogitMeans(
            self.head_scores + poison, guarded(self.key_map), guarded(self.query_map), self.phi
        )


def from_input(
    form: AttentionForm,
    p: Projections,
    y: Tensor,  # [B, N, D]
    prefix: int,
    include_prefix: bool,
    maps: tuple[str, ...],
) -> LogitMeans:
    """Input level. ``maps`` may hold patch_map and query_map; others are not computed."""
    patches = y[:, prefix:]
    chosen = y if include_prefix else patches
    mean = chosen.mean(dim=1, dtype=torch.float32)  # [B, D]
    q_mean, k_mean = p.both(mean)
    heads = form.num_heads
    factor = form.scale / heads

    def map_of(partner: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        scores = (patches.float() @ (partner @ weight).unsqueeze(-1)).squeeze(-1)
        if bias is not None:
            scores = scores + (partner @ bias).unsqueeze(-1)
        return factor * scores

    return LogitMeans(
        head_scores=form.scale * (q_mean * k_mean).unflatten(-1, (heads, -1)).sum(-1),
        key_map=map_of(q_mean, p.k_weight, p.k_bias) if "patch_map" in maps else None,
        query_map=map_of(k_mean, p.q_weight, p.q_bias) if "query_map" in maps else None,
        phi=factor * q_mean,
    )


def from_query_key(
    q: Tensor,  # [B, H, N, d]
    k: Tensor,  # [B, H, N, d]
    scale: float,
    bias: Tensor | None,  # broadcasts to [B, H, N, N]
    prefix: int,
    include_prefix: bool,
) -> LogitMeans:
    """Query-key level, with an additive bias where an adapter gives one."""
    first = 0 if include_prefix else prefix
    skip = prefix - first  # chosen tokens before the first patch
    B, H, N, _ = q.shape
    dtype = q.dtype if q.dtype == k.dtype else torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        dtype = torch.float32  # float64 models
    means = ops.attention_logits_mean(q[:, :, first:].to(dtype), k[:, :, first:].to(dtype), scale)
    head_scores, key_map, query_map = means.head_scores, means.key_map, means.query_map
    if bias is not None:
        full = bias.float()
        full = full.expand(torch.broadcast_shapes(full.shape, (1, H, N, N)))[..., first:, first:]
        head_scores = head_scores + full.mean(dim=(2, 3))
        key_map = key_map + full.mean(dim=(1, 2))
        query_map = query_map + full.mean(dim=(1, 3))
    return LogitMeans(
        head_scores=head_scores,
        key_map=key_map[:, skip:],
        query_map=query_map[:, skip:],
        phi=(scale / H) * means.q_mean.flatten(1),
    )
