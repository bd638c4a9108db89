# SPDX-License-Identifier: Apache-2.0
"""The face ViT of CVLface and insightface arcface_torch, as one definition.

Parameter names are those of the published checkpoints. Every linear layer computes in the dtype
of its own weight while norms and the residual stream keep the dtype of their input, so a model
whose block weights were cast to bfloat16 runs in mixed precision without any switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ViTConfig

FEATURE_BN_EPS = 2e-5


class Linear(nn.Linear):
    """``nn.Linear`` that takes its input in any floating dtype."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class PatchEmbed(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size=size, stride=size)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, S, S] -> [B, N, D]
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v, each [B, H, N, d], by torch's fused kernels."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def ieee_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same in plain products, all weights in memory.

    What float32 takes on a GPU: torch's fused kernel for it splits every product into TF32 ones.
    """
    return torch.matmul(torch.matmul(q * scale, k.mT).softmax(-1), v)


class Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.attend = fused_attention
        self.qkv = Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, y: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        q, k, v = self.qkv(y).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.attend(q, k, v, self.scale)  # [B, H, N, d]
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.embed_dim, config.hidden_dim)
        self.act = nn.ReLU6() if config.activation == "relu6" else nn.GELU()
        self.fc2 = Linear(config.hidden_dim, config.embed_dim)

    def forward(self, y: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(y)))
        return out


class Block(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D], the residual stream
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class FaceViT(nn.Module):
    """A ViT over patch tokens (no class token) with an embedding head over all of them.

    ``forward`` maps normalised RGB images [B, 3, S, S], ``(x / 255 - 0.5) / 0.5``, to embeddings
    [B, num_classes], not L2-normalised: final norm, then Linear-BN-Linear-BN over the flattened
    tokens, as CVLface and arcface_torch compute them. ViT-FIQA's models (``config.quality_head``)
    have a head for the quality score as well, and two of the three a quality token, token 0.
    Evaluation only: the random masking, drop path and dropout of training are left out.
    """

    pos_embed: nn.Parameter
    qs_token: nn.Parameter
    head_qs: nn.Sequential
    checkpoint_borrowed = False  # its tensors may lie in the file, and are as loaded

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which has tensors of its own."""
        return {name: value for name, value in vars(self).items() if name != "checkpoint_borrowed"}

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config = config
        # Set by load_model: the file, digests of its bytes and of the weights as loaded, and what
        # the file says of itself, whatever architecture the caller asked for.
        self.checkpoint_path: Path | None = None
        self.checkpoint_sha256: str | None = None
        self.checkpoint_state_sha256: str | None = None
        self.checkpoint_config: ViTConfig | None = None
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, dim))
        blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.blocks = cast("Sequence[Block]", blocks)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.feature = nn.Sequential(
            Linear(config.num_feature_tokens * dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=FEATURE_BN_EPS),
            Linear(dim, config.num_classes, bias=False),
            nn.BatchNorm1d(config.num_classes, eps=FEATURE_BN_EPS),
        )
        if config.num_prefix_tokens:
            self.qs_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.quality_head is not None:
            self.head_qs = nn.Sequential(
                nn.BatchNorm1d(dim, eps=FEATURE_BN_EPS), Linear(dim, 1, bias=False)
            )
        self.eval()

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] to tokens [B, N, D] that know no position."""
        tokens: Tensor = self.patch_embed(images)
        if self.config.num_prefix_tokens:
            tokens = torch.cat([self.qs_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] to the input of block 1, [B, N, D]."""
        return self.tokens(images) + self.pos_embed

    def head(self, x: Tensor) -> Tensor:
        """Output of the last block [B, N, D] to embeddings [B, num_classes]."""
        tokens = self.norm(x)[:, -self.config.num_feature_tokens :]
        embedding: Tensor = self.feature(tokens.flatten(1))
        return embedding

    def quality(self, x: Tensor) -> Tensor:
        """Output of any block [B, N, D] to ViT-FIQA's quality scores [B]."""
        token = self.config.quality_head == "token"
        features = self.norm(x[:, 0]) if token else self.head(x)
        score: Tensor = self.head_qs(features).squeeze(-1)
        return score

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
