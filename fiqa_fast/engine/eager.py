# SPDX-License-Identifier: Apache-2.0
"""The eager engine: torch operators, image group by image group.

Groups have one fixed shape, the last one is padded, and on the CPU each is computed by one thread.
On a GPU the shape stays fixed up to the results, because torch's reductions, too, choose an order
of additions by it. Block products run in the chosen dtype; patch embedding, residual stream, norms
and everything a quality method computes are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.packed import can_pack, pack
from ..models.patches import PatchProducts
from ..models.vit import Attention, FaceViT, ieee_attention
from ..quality.method import Norm, Tap, Values
from .engine import Engine, Observed, first, prepared

# Images per group on a GPU: the batch that the command line and the Ray pipeline hand over unless
# told otherwise, so that nothing is padded there. Not chosen by measurement: benchmarks/gpu.py
# times others.
GPU_GROUP = 32
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


def fill(group: Tensor, images: Tensor, minus_one: Tensor) -> None:
    """Normalise ``images``, as many as there are, into ``group`` [group, 3, S, S], float32; the
    rest of it is zeros. Floats are normalised already."""
    used = group[: len(images)]
    # Asynchronously to a GPU only: a CPU thread would read pixels before they arrive.
    used.copy_(images, non_blocking=group.device.type != "cpu")
    if images.dtype == torch.uint8:
        # (v / 255 - 0.5) / 0.5 to the bit, because doubling is exact.
        torch.add(minus_one, used.div_(255), alpha=2, out=used)
    group[len(images) :].zero_()


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

    def images_per_group(self) -> int:
        """One number for all groups."""
        on_cpu = self.device.type == "cpu"
        return cpu_group(self.vit.config.num_tokens) if on_cpu else GPU_GROUP

    def build(self, vit: FaceViT) -> None:
        self.vit = prepared(vit, self.last_stage, self.device, self.dtype)
        method, dtype, on_cpu = self.method, self.dtype, self.device.type == "cpu"
        self.group = self.images_per_group()
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
        if not on_cpu:
            self.vit.patch_embed = PatchProducts(self.vit.patch_embed)  # type: ignore[assignment]
            if dtype == torch.float32 and self.float32_precision == "highest":
                for module in self.vit.modules():
                    if isinstance(module, Attention):
                        module.attend = ieee_attention

    def split(self, images: Tensor) -> Sequence[Tensor]:
        groups: Sequence[Tensor] = images.split(self.group)
        return groups

    def observe(self, images: Tensor, threads: int) -> Observed:
        observed = self._observed(self._filled(images))
        return observed if len(images) == self.group else observed.first(len(images))

    def whole(self, images: Tensor) -> Values:
        """A group of normalised images [group, 3, S, S], float32, to their results."""
        return self._finish([self._observed(images)])

    def _run_slice(self, images: Tensor) -> list[Values]:
        if self.device.type == "cpu":
            return super()._run_slice(images)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            return [
                first(len(group), self.whole(self._filled(group))) for group in self.split(images)
            ]

    def _filled(self, images: Tensor) -> Tensor:
        shape = (self.group, *images.shape[1:])
        group = torch.empty(shape, dtype=torch.float32, device=self.device)
        fill(group, images, self.minus_one)
        return group

    def _observed(self, images: Tensor) -> Observed:
        x, seen = self._stream(images)
        return Observed(seen, None if self.head is None else self.head.rows(x))

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
