# SPDX-License-Identifier: Apache-2.0
"""The three systems in float64 numpy, from a checkpoint's names and arrays alone.

A second implementation, written from the papers' equations: nothing of fiqa_fast, and no torch
module, takes part, so that a mistake would have to be made twice to go unseen. Every logit is
formed, every block runs, and batch norms, heads and fusions are applied one after another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
BATCH_NORM_EPS = 2e-5


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a model is made of; ``head`` is ViT-FIQA's variant: token, crfiqa, full or none."""

    patch: int
    dim: int
    heads: int
    depth: int
    hidden: int
    classes: int = 16
    qkv_bias: bool = False
    head: str | None = None
    image: int = 112
    eps: float = 1e-5
    activation: str = "relu6"

    @property
    def side(self) -> int:
        return self.image // self.patch

    @property
    def prefix(self) -> int:
        return int(self.head in ("token", "full"))

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint's shapes do not show."""
        return {
            "num_heads": self.heads,
            "img_size": self.image,
            "layer_norm_eps": self.eps,
            "activation": self.activation,
        }


def random_state(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A checkpoint with nothing left at the values that hide mistakes (zeros, ones, equal rows)."""
    dim, tokens = shape.dim, shape.side**2 + shape.prefix
    width = shape.classes if shape.head is None else dim
    state: dict[str, np.ndarray] = {}

    def linear(name: str, out: int, fan_in: int, bias: bool, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = rng.normal(0, gain * fan_in**-0.5, (out, fan_in))
        if bias:
            state[f"{name}.bias"] = rng.normal(0, 0.3, out)

    def layer_norm(name: str) -> None:
        state[f"{name}.weight"] = rng.normal(1, 0.3, dim)
        state[f"{name}.bias"] = rng.normal(0, 0.3, dim)

    def batch_norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = rng.normal(1, 0.3, size)
        state[f"{name}.bias"] = rng.normal(0, 0.5, size)
        state[f"{name}.running_mean"] = rng.normal(0, 0.5, size)
        state[f"{name}.running_var"] = rng.lognormal(0, 1, size)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    patch = shape.patch
    state["patch_embed.proj.weight"] = rng.normal(0, 1 / patch, (dim, 3, patch, patch))
    state["patch_embed.proj.bias"] = rng.normal(0, 0.3, dim)
    state["pos_embed"] = rng.normal(0, 0.5, (1, tokens, dim))
    if shape.prefix:
        state["qs_token"] = rng.normal(0, 1, (1, 1, dim))
    for number in range(shape.depth):
        block = f"blocks.{number}"
        layer_norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * dim, dim, shape.qkv_bias, 1.5)
        linear(f"{block}.attn.proj", dim, dim, True)
        layer_norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", shape.hidden, dim, True, 2.0)  # beyond ReLU6's upper end too
        linear(f"{block}.mlp.fc2", dim, shape.hidden, True)
    layer_norm("norm")
    linear("feature.0", dim, (shape.side**2 + (shape.head == "full")) * dim, False)
    batch_norm("feature.1", dim)
    linear("feature.2", width, dim, False)
    batch_norm("feature.3", width)
    if shape.head is not None:
        batch_norm("head_qs.0", dim)
        linear("head_qs.1", 1, dim, False)
    return {
        name: value if name.endswith("tracked") else value.astype(np.float32)
        for name, value in state.items()
    }


class Float64ViT:
    """One forward pass that keeps everything.

    ``queries[l]`` [B, H, N, d] and ``logits[l]`` [B, H, N, N] of block l + 1, ``embedding``
    [B, E], and for models with a quality head ``exit_scores`` [B, L], the head after every block.
    """

    def __init__(self, shape: Shape, state: Mapping[str, np.ndarray], images: np.ndarray) -> None:
        self.shape = shape
        self.state = {name: np.asarray(value, np.float64) for name, value in state.items()}
        self.queries: list[Array] = []
        self.logits: list[Array] = []
        exits = []
        x = self._tokens(images)
        for number in range(shape.depth):
            x = self._block(f"blocks.{number}", x)
            if shape.head is not None:
                exits.append(self._quality(x))
        self.embedding = self._feature(x)
        self.exit_scores = np.stack(exits, 1) if exits else None

    def _tokens(self, images: np.ndarray) -> Array:  # uint8 [B, 3, S, S]
        patch, side = self.shape.patch, self.shape.side
        pixels = (images.astype(np.float64) / 255 - 0.5) / 0.5
        pixels = pixels[:, :, : side * patch, : side * patch]
        grid = pixels.reshape(len(images), 3, side, patch, side, patch)
        rows = grid.transpose(0, 2, 4, 1, 3, 5).reshape(len(images), side * side, -1)
        weight = self.state["patch_embed.proj.weight"]
        x = rows @ weight.reshape(len(weight), -1).T + self.state["patch_embed.proj.bias"]
        if self.shape.prefix:
            token = np.repeat(self.state["qs_token"], len(images), 0)
            x = np.concatenate([token, x], 1)
        return x + self.state["pos_embed"]

    def _block(self, name: str, x: Array) -> Array:
        B, N, D = x.shape
        H = self.shape.heads
        qkv = self._linear(f"{name}.attn.qkv", self._layer_norm(f"{name}.norm1", x))
        q, k, v = qkv.reshape(B, N, 3, H, D // H).transpose(2, 0, 3, 1, 4)
        logits = q @ k.transpose(0, 1, 3, 2) / math.sqrt(D // H)
        self.queries.append(q)
        self.logits.append(logits)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(B, N, D)
        x = x + self._linear(f"{name}.attn.proj", mixed)
        hidden = self._linear(f"{name}.mlp.fc1", self._layer_norm(f"{name}.norm2", x))
        if self.shape.activation == "relu6":
            hidden = np.clip(hidden, 0, 6)
        else:
            hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        return x + self._linear(f"{name}.mlp.fc2", hidden)

    def _feature(self, x: Array) -> Array:
        y = self._layer_norm("norm", x)
        if self.shape.head == "token":
            y = y[:, 1:]
        y = self._batch_norm("feature.1", self._linear("feature.0", y.reshape(len(y), -1)))
        return self._batch_norm("feature.3", self._linear("feature.2", y))

    def _quality(self, x: Array) -> Array:
        token = self.shape.head == "token"
        y = self._layer_norm("norm", x)[:, 0] if token else self._feature(x)
        return self._linear("head_qs.1", self._batch_norm("head_qs.0", y))[:, 0]

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self.state[f"{name}.weight"].T
        bias = self.state.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _layer_norm(self, name: str, x: Array) -> Array:
        spread = np.sqrt(x.var(-1, keepdims=True) + self.shape.eps)
        y: Array = (x - x.mean(-1, keepdims=True)) / spread
        return y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def _batch_norm(self, name: str, x: Array) -> Array:
        spread = np.sqrt(self.state[f"{name}.running_var"] + BATCH_NORM_EPS)
        y: Array = (x - self.state[f"{name}.running_mean"]) / spread
        return y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


@dataclasses.dataclass(frozen=True)
class AttentionQuality:
    """ATTN-FIQA of one block, read off its logits in memory."""

    logits: Array  # [B, H, N, N] of all tokens
    prefix: int  # tokens before the patches
    tokens: str = "patch"
    heads: str | int = "all"

    @property
    def _chosen(self) -> Array:  # [B, H', n, n]
        first = self.prefix if self.tokens == "patch" else 0
        chosen = self.logits[:, :, first:, first:]
        if self.heads == "average":
            return chosen.mean(1, keepdims=True)
        return chosen if self.heads == "all" else chosen[:, [self.heads]]

    @property
    def head_scores(self) -> Array:
        return dataclasses.replace(self, heads="all")._chosen.mean((2, 3))

    @property
    def patch_map(self) -> Array:  # what every patch's key receives
        return self._grid(self._chosen.mean((1, 2)))

    @property
    def query_map(self) -> Array:
        return self._grid(self._chosen.mean((1, 3)))

    @property
    def head_maps(self) -> Array:  # of every head, whichever was chosen
        return self._grid(dataclasses.replace(self, heads="all")._chosen.mean(2))

    def _grid(self, values: Array) -> Array:
        patches = values[..., self.prefix if self.tokens == "all" else 0 :]
        side = math.isqrt(patches.shape[-1])
        return patches.reshape(*patches.shape[:-1], side, side)

    @property
    def spread(self) -> float:
        """The smallest standard deviation of an image's logits: the unit of a median's error."""
        return float(self._chosen.std((1, 2, 3)).min())

    def score(self, reduction: str) -> Array:
        values = self._chosen
        flat = values.reshape(len(values), -1)
        if reduction == "mean":
            return flat.mean(1)
        if reduction == "median":  # the lower of the two middle ones
            return np.sort(flat, 1)[:, (flat.shape[1] - 1) // 2]
        if reduction == "max":
            return flat.max(1)
        if reduction == "inverse_std":
            return 1 / flat.std(1, ddof=1)
        if reduction == "row_variance":
            return values.var(3).mean((1, 2))
        assert reduction == "centered_variance"
        rows = values - values.mean(3, keepdims=True)
        both = rows - rows.mean(2, keepdims=True)
        return (both**2).mean((1, 2, 3))


def fused(exits: list[Array], fusion: str | None) -> Array:
    """The last exit's values; or all exits' mean, uniform or weighted by depth."""
    if fusion is None:
        return exits[-1]
    depth = np.arange(1.0, len(exits) + 1)
    weights = np.ones(len(exits)) if fusion == "uniform" else depth
    total = sum(weight * values for weight, values in zip(weights, exits, strict=True))
    return np.asarray(total / weights.sum())
