# SPDX-License-Identifier: Apache-2.0
"""The numbers that define a face ViT."""

from __future__ import annotations

import dataclasses

ACTIVATIONS = ("relu6", "gelu")
# ViT-FIQA's variants (arXiv 2508.13957): T, C and the one whose head reads all tokens.
QUALITY_HEADS = ("token", "crfiqa", "full")
# Far above any ViT; they bound what a made-up checkpoint can ask for.
MAX_DEPTH = 1000
MAX_SIZE = 1_000_000


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Constructor arguments of :class:`fiqa_fast.models.FaceViT`, checked on construction.

    Sizes are in pixels (``img_size``, ``patch_size``) and in features (``embed_dim``,
    ``num_classes``: the width of the embedding). ``mlp_ratio`` may be fractional as long as
    ``mlp_ratio * embed_dim`` is whole. ``quality_head`` is the variant of a ViT-FIQA model:
    ``"token"`` (T: patches to the embedding, the quality token to the score), ``"crfiqa"`` (C: no
    quality token, the embedding to the score) or ``"full"`` (all tokens to the embedding, it to
    the score). Their embedding is ``embed_dim`` wide, whatever ``num_classes`` says.

    Raises:
        ValueError: a number is out of range, or two of them do not fit together.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    num_classes: int = 512
    img_size: int = 112
    qkv_bias: bool = False
    layer_norm_eps: float = 1e-5
    activation: str = "relu6"
    quality_head: str | None = None

    def __post_init__(self) -> None:
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "num_classes", "img_size"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise ValueError(
                    f"{name} must be a whole number from 1 to {MAX_SIZE}, got {value!r:.40}"
                )
        if self.depth > MAX_DEPTH:
            raise ValueError(f"depth must be at most {MAX_DEPTH}, got {self.depth}")
        if type(self.qkv_bias) is not bool:
            raise ValueError(f"qkv_bias must be true or false, got {self.qkv_bias!r}")
        for name in ("mlp_ratio", "layer_norm_eps"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= MAX_SIZE:
                raise ValueError(f"{name} must be a positive number, got {value!r:.40}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        if self.quality_head is not None:
            if self.quality_head not in QUALITY_HEADS:
                raise ValueError(
                    f"quality_head must be one of {', '.join(QUALITY_HEADS)} or none, "
                    f"got {self.quality_head!r}"
                )
            object.__setattr__(self, "num_classes", self.embed_dim)
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim {self.embed_dim}, got {self.num_heads}"
            )
        if self.hidden_dim < 1 or abs(self.mlp_ratio * self.embed_dim - self.hidden_dim) > 1e-6:
            raise ValueError(
                f"mlp_ratio x embed_dim must be a whole number, got {self.mlp_ratio!r} x "
                f"{self.embed_dim}"
            )
        if self.patch_size > self.img_size:
            raise ValueError(
                f"patch_size must be at most img_size {self.img_size}, got {self.patch_size}"
            )

    @property
    def grid_size(self) -> int:
        """Patches per side; pixels beyond the last whole patch are not seen by the model."""
        return self.img_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: ViT-FIQA's quality token, or none."""
        return int(self.quality_head in ("token", "full"))

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_patches

    @property
    def num_feature_tokens(self) -> int:
        """Tokens that the embedding is made of: the last ones."""
        return self.num_patches if self.quality_head == "token" else self.num_tokens

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        return round(self.mlp_ratio * self.embed_dim)
