# SPDX-License-Identifier: Apache-2.0
"""Every block's mean logit and pooled query from one pass: what a gauge is fitted on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.vit import FaceViT
from .attn_fiqa import QueryKey
from .method import Tap, Values


class PooledAttention:
    """A :class:`QualityMethod` whose results are ``mean_logits`` [B, L] and ``phi`` [B, L, D].

    They are, bit for bit, what ATTN-FIQA publishes over the patches and what a gauge weighs.
    """

    def __init__(self, vit: FaceViT, device: torch.device | str = "cpu") -> None:
        self.first_token = vit.config.num_prefix_tokens
        self.blocks = [QueryKey(block, torch.device(device), maps=False) for block in vit.blocks]
        self.stages = frozenset(range(len(self.blocks)))

    def tap(self, stage: int) -> Tap:
        return Tap(self.blocks[stage].norm, mean_from=self.first_token, enough=True)

    def observe(self, stage: int, x: Tensor, tapped: Values) -> Values:  # x: [B, N, D]
        return tapped or {"mean": self.blocks[stage].mean(x[:, self.first_token :])}

    def finish(self, observed: dict[int, Values]) -> Values:
        means, phis = [], []
        for stage, block in enumerate(self.blocks):
            q_mean, k_mean = block.pooled(observed[stage]["mean"])
            means.append(block.head_scores(q_mean, k_mean).mean(1))
            phis.append(block.phi(q_mean))
        return {"mean_logits": torch.stack(means, 1), "phi": torch.stack(phis, 1)}
