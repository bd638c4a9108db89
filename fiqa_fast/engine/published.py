# SPDX-License-Identifier: Apache-2.0
"""The published computation, for comparison: every logit in memory, the whole model run.

The forward pass as the reference systems define it, eagerly, over a whole batch: attention by
explicit softmax of Q K^T, and the score as the mean of the last block's logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.vit import Block, FaceViT


@torch.inference_mode()
def published_scores(model: FaceViT, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Published ATTN-FIQA scores, float32 [B], of normalised images [B, 3, S, S].

    ``model``'s parameters must already have ``dtype`` (``copy.deepcopy(model).to(dtype)``).
    """
    x = model.embed(images.to(dtype))
    logits = x
    for block in model.blocks:
        x, logits = _block(block, x)
    model.head(x)  # part of the published pass: the embedding comes with the score
    first = model.config.num_prefix_tokens  # the N of the papers is the patches
    return logits[:, :, first:, first:].float().mean((1, 2, 3))


def _block(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = (q @ k.transpose(-2, -1)) * attention.scale  # [B, H, N, N]
    out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + attention.proj(out)
    return x + block.mlp(block.norm2(x)), logits
