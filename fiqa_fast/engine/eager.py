# SPDX-License-Identifier: Apache-2.0
"""The eager engine: torch operators, image group by image group.

Groups have one fixed shape, the last one is padded, and on the CPU each is computed by one thread.
Block products run in the chosen dtype; patch embedding, residual stream, norms and everything a
quality method computes are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.packed import can_pack, pack
from ..quality.method import Norm, Tap, Values
from .engine import Engine, Observed

# Images per group on a GPU: enough to fill one with a small ViT, small enough that padding a
# short batch wastes little.
CUDA_GROUP = 64
# Small images share a group on a CPU, up to so many tokens: small products are mostly overhead
# (512 against 256 tokens: 1.2 to 1.3 times the speed of the built-in model). Larger ones go
# alone, so that a single image does not pay for a group of them.
CPU_GROUP_TOKENS = 512
CPU_ALONE_TOKENS = 128
# Rows of a product that are computed together, by the widest of the CPU's matrix instructions.
TILE_ROWS = 16


def cpu_group(num_tokens: int) -> int:
    """Images per group on a CPU.

    More than one only where every image fills whole tiles of rows, so that no row of a product is
    a remainder. That an image's place in its group does not matter rests on this and on the
    library's summing every row in the same order; tests check it bit by bit.
    """
    if num_tokens % TILE_ROWS or num_tokens >= CPU_ALONE_TOKENS:
        return 1
    return CPU_GROUP_TOKENS // num_tokens


class AddNorm:
    """A residual sum and the norm behind it, with what the norm gives on its way.

    Its arguments are laid out: where the blocks' weights fill the caches, looking for them would
    take longer than the norm. With ``alone`` nobody reads the sum and its norm: where a mean is
    all that is left, they are not formed.
    """

    def __init__(self, norm: Norm, dtype: torch.dtype, tap: Tap | None, alone: bool) -> None:
        mean_from = None if tap is None else tap.mean_from
        w = None if tap is None else tap.w
        self.enough = tap is not None and tap.enough
        self.has_mean, self.has_dot = mean_from is not None, w is not None
        self.norm, self.mean_from = norm, mean_from
        self.mean_alone = alone and self.enough and self.has_mean
        self.arguments = (*norm, dtype, -1 if mean_from is None else mean_from, w)

    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Values]:
        if self.mean_alone:
            left, right = x[:, self.mean_from :], residual[:, self.mean_from :]
            mean, _ = torch.ops.fiqa_fast.mean_layer_norm(left, *self.norm, right, None)
            return x, x, {"mean": mean}
        x, y, mean, dot = torch.ops.fiqa_fast.add_layer_norm(x, residual, *self.arguments)
        if self.has_mean:
            return x, y, {"mean": mean}
        return x, y, {"dot": dot} if self.has_dot else {}


class EagerEngine(Engine):
    """torch's operators, on any device."""

    name = "eager"

    def build(self) -> None:
        method, dtype, on_cpu = self.method, self.dtype, self.device.type == "cpu"
        self.group = cpu_group(self.vit.config.num_tokens) if on_cpu else CUDA_GROUP
        blocks = self.vit.blocks[: self.last_stage]
        taps = [method.tap(n) if n in method.stages else None for n in range(len(blocks) + 1)]
        # Of every stage: the norm before the block that reads it. Where none does, the tap's, or
        # any: what matters there is the sum.
        outer = [_norm(block.norm1) for block in blocks]
        outer.append((None, None, 1.0) if taps[-1] is None else taps[-1].norm)
        self.outer_norms = [
            AddNorm(norm, dtype, tap, alone=stage == len(blocks) and self.head is None)
            for stage, (norm, tap) in enumerate(zip(outer, taps, strict=True))
        ]
        self.inner_norms = [AddNorm(_norm(block.norm2), dtype, None, False) for block in blocks]
        self.minus_one = torch.tensor(-1.0, dtype=torch.float32, device=self.device)
        positions = self.vit.pos_embed.detach()
        self.positions = positions.expand(self.group, -1, -1)
        if on_cpu and can_pack(dtype):
            pack(self.vit, self.group)

    def split(self, images: Tensor) -> Sequence[Tensor]:
        groups: Sequence[Tensor] = images.split(self.group)
        return groups

    def observe(self, images: Tensor, threads: int) -> Observed:
        count = len(images)
        # Asynchronously to a GPU only: a CPU thread would read pixels before they arrive.
        images = images.to(self.device, non_blocking=self.device.type == "cuda")
        if count < self.group:
            images = torch.cat([images, images.new_zeros(self.group - count, *images.shape[1:])])
        if images.dtype == torch.uint8:
            # (v / 255 - 0.5) / 0.5 to the bit, because doubling is exact.
            images = torch.add(self.minus_one, images.float().div_(255), alpha=2)
        x, seen = self._stream(images)
        rows = None if self.head is None else self.head.rows(x)
        if count < self.group:
            seen = {stage: _first(count, values) for stage, values in seen.items()}
            rows = None if rows is None else rows[:count]
        return Observed(seen, rows)

    def _stream(self, images: Tensor) -> tuple[Tensor, dict[int, Values]]:
        """The residual stream after the last block that runs, and what the method saw of it."""
        seen: dict[int, Values] = {}
        x, residual = self.vit.tokens(images), self.positions
        for stage, norm in enumerate(self.outer_norms):
            x, y, tapped = norm(x, residual)
            if norm.enough:
                seen[stage] = tapped
            elif stage in self.method.stages:
                seen[stage] = self.method.observe(stage, x, tapped)
            if stage < self.last_stage:
                block = self.vit.blocks[stage]
                x, y, _ = self.inner_norms[stage](x, block.attn(y))
                residual = block.mlp(y)
        return x, seen


def _norm(norm: nn.LayerNorm) -> Norm:
    return norm.weight.detach(), norm.bias.detach(), norm.eps


def _first(count: int, values: Values) -> Values:
    return {name: value[:count] for name, value in values.items()}
