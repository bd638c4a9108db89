# SPDX-License-Identifier: Apache-2.0
"""The published computation, for comparison: every logit in memory, block after block.

The forward pass as the reference systems define it, over a whole batch: attention by explicit
softmax of Q K^T, and the score from the logits (ATTN-FIQA) or from the quality head (ViT-FIQA,
EX-FIQA). At the last block the embedding comes with the score, as it does there.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..models.vit import Block, FaceViT
from ..quality.fusion import exit_weights
from ..quality.reductions import Heads
from ..reference import reduce_logits


def normalised(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, S, S] to (x / 255 - 0.5) / 0.5, computed in float32 or better."""
    exact = torch.promote_types(dtype, torch.float32)
    return pixels.to(exact).div(255).sub(0.5).div(0.5).to(dtype)


class Published(nn.Module):
    """uint8 RGB [B, 3, S, S] to scores, float32 [B] (float64 in float64), and what comes with them.

    The arguments are those of :class:`fiqa_fast.Scorer`. An early exit of attn-fiqa ends with the
    logits of its block. Everything is computed in ``dtype``, from a copy of the weights unless
    they have it already.
    """

    def __init__(
        self,
        vit: FaceViT,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        method: str = "attn-fiqa",
        reduction: str = "mean",
        heads: Heads = "all",
        tokens: str = "patch",
        exit: int | None = None,
        fusion: str | None = None,
    ) -> None:
        super().__init__()
        place, held = torch.device(device), vit.pos_embed
        same = (held.dtype, held.device) == (dtype, place)
        self.vit = vit if same else copy.deepcopy(vit).to(place, dtype)
        self.dtype = dtype
        self.attention, self.reduction, self.heads = method == "attn-fiqa", reduction, heads
        # The N of the papers is the patches.
        self.first_token = vit.config.num_prefix_tokens if tokens == "patch" else 0
        self.exit = vit.config.depth if exit is None else exit
        self.weights = exit_weights(self.exit, fusion)
        last = self.exit == vit.config.depth
        # ViT-FIQA's other variants read their score off the embedding.
        self.with_embedding = last and (self.attention or vit.config.quality_head == "token")
        self.logits_end_it = self.attention and not last

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self.vit.embed(normalised(pixels, self.dtype))
        terms = []
        for number, block in enumerate(self.vit.blocks[: self.exit], 1):
            logits, values = _logits(block, x)
            if self.attention and number in self.weights:
                terms.append(self.weights[number] * self._reduced(logits))
            if number == self.exit and self.logits_end_it:
                break
            x = _rest_of(block, x, logits, values)
            if not self.attention and number in self.weights:
                terms.append(self.weights[number] * _exact(self.vit.quality(x)))
        score = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        return (score, self.vit.head(x)) if self.with_embedding else (score,)

    def _reduced(self, logits: Tensor) -> Tensor:
        """One value per image of logits [B, H, N, N]."""
        logits = _exact(logits[:, :, self.first_token :, self.first_token :])
        return reduce_logits(logits, self.reduction, self.heads)


def _logits(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every attention logit [B, H, N, N], and the values [B, H, N, d]."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1)) * attention.scale, v


def _rest_of(block: Block, x: Tensor, logits: Tensor, values: Tensor) -> Tensor:
    out = (logits.softmax(-1) @ values).transpose(1, 2).flatten(2)
    x = x + block.attn.proj(out)
    x = x + block.mlp(block.norm2(x))
    return x


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
