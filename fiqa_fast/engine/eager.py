# SPDX-License-Identifier: Apache-2.0
"""The eager engine: torch operators, image group by image group.

Results are bitwise independent of batching and threads by construction: images go through the
blocks in groups of one fixed shape, the last one padded, and on the CPU each group is computed by
one thread (see :mod:`fiqa_fast.workers`); what is left of an image behind the blocks is a row of
its own in operators that never mix rows. Block products run in the chosen dtype; patch
embedding, residual stream, norms and everything a quality method computes are float32.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from .. import ops
from ..hardware import FLOAT32_PRECISIONS, float32_arithmetic
from ..models.casting import cast_linear, drop_key_biases
from ..models.packed import can_pack, pack
from ..models.rows import EmbeddingHead
from ..models.vit import FaceViT
from ..quality.method import QualityMethod, Values
from ..workers import run_all, run_alone

T = TypeVar("T")

# Images per group on a GPU: enough to fill one with a small ViT, small enough that padding a
# short batch wastes little.
CUDA_GROUP = 64
# Small images share a group on a CPU, up to so many tokens: small products are mostly overhead
# (512 against 256 tokens: 1.2 to 1.3 times the speed of the built-in model). Larger ones go
# alone, so that a single image does not pay for a group of them.
CPU_GROUP_TOKENS = 512
CPU_ALONE_TOKENS = 128
# Images whose rows are kept at a time: for an embedding, all of an image's tokens.
SLICE = 256
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


@dataclasses.dataclass
class Observed:
    """What is left of some images behind the blocks."""

    stages: dict[int, Values]
    embedding_rows: Tensor | None


class EagerEngine:
    """Runs ``vit`` for ``method``; with ``embedding`` also the whole model's embedding.

    Only the blocks that the method's stages (or the embedding) need are computed.
    """

    def __init__(
        self,
        vit: FaceViT,
        method: QualityMethod,
        *,
        embedding: bool,
        device: torch.device,
        dtype: torch.dtype,
        float32_precision: str = "highest",
    ) -> None:
        self.method, self.device, self.dtype = method, device, dtype
        self.head = EmbeddingHead(vit, device, dtype) if embedding else None
        self.last_stage = vit.config.depth if embedding else max(method.stages)
        self.vit = _prepared(vit, self.last_stage, device, dtype)
        tokens = vit.config.num_tokens
        on_cpu = device.type == "cpu"
        self.group = cpu_group(tokens) if on_cpu else CUDA_GROUP
        if on_cpu and can_pack(dtype):
            pack(self.vit, self.group)
        self.float32_mode = FLOAT32_PRECISIONS[float32_precision]

    def run(self, images: Tensor) -> Values:
        """uint8 RGB [B, 3, S, S], or normalised float32, to results by output name, on the CPU."""
        if len(images) == 0:  # shapes come from the one place that knows them
            one = self.run(images.new_zeros(1, *images.shape[1:]))
            return {name: t[:0] for name, t in one.items()}
        results: list[Values] = []
        with float32_arithmetic(self.float32_mode, self.device.type):
            for part in images.split(SLICE):
                results += self._run_slice(part)
        joined = run_alone(lambda: _joined(results))
        return {name: tensor.cpu() for name, tensor in joined.items()}

    def _run_slice(self, images: Tensor) -> list[Values]:
        groups = images.split(self.group)
        observed = self._each(lambda number: self._observe(groups[number]), len(groups))
        # As many shares as there are threads: each reads all weights behind the blocks.
        shares = min(torch.get_num_threads(), len(groups)) if self.device.type == "cpu" else 1
        bounds = [len(groups) * number // shares for number in range(shares + 1)]
        return self._each(
            lambda number: self._finish(observed[bounds[number] : bounds[number + 1]]), shares
        )

    def _each(self, task: Callable[[int], T], count: int) -> list[T]:
        results: dict[int, T] = {}

        def keep(number: int) -> None:
            results[number] = task(number)

        if self.device.type == "cpu":
            run_all(keep, count)
        else:
            with torch.autocast(self.device.type, enabled=False):
                for number in range(count):
                    keep(number)
        return [results[number] for number in range(count)]

    @torch.inference_mode()
    def _observe(self, images: Tensor) -> Observed:
        count = len(images)
        # Asynchronously to a GPU only: a CPU thread would read pixels before they arrive.
        images = images.to(self.device, non_blocking=self.device.type == "cuda")
        if count < self.group:
            images = torch.cat([images, images.new_zeros(self.group - count, *images.shape[1:])])
        if images.dtype == torch.uint8:
            images = images.float().div_(255).sub_(0.5).div_(0.5)
        x = self.vit.embed(images)
        seen: dict[int, Values] = {}
        tapped: Values = {}
        y = x
        for stage in range(self.last_stage + 1):
            if stage == 1:
                y = self.vit.blocks[0].norm1(x).to(self.dtype)
            if stage > 0:
                x, y, tapped = self._block(stage, x, y)
            if stage in self.method.stages:
                values = self.method.observe(stage, x, tapped)
                seen[stage] = values
        rows = None if self.head is None else self.head.rows(x)
        if count < self.group:
            seen = {stage: _first(count, values) for stage, values in seen.items()}
            rows = None if rows is None else rows[:count]
        return Observed(seen, rows)

    def _block(self, number: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Values]:
        """The stream and its norm before a block to those before the next, with what that norm
        gave on its way; behind the last block that runs there is no norm."""
        block = self.vit.blocks[number - 1]
        x, y, _, _ = self._add_norm(x, block.attn(y), block.norm2)
        residual = block.mlp(y)
        if number == self.last_stage:
            return x + residual, y, {}
        norm = self.vit.blocks[number].norm1
        tap = self.method.tap(number) if number in self.method.stages else None
        if tap is None:
            x, y, _, _ = self._add_norm(x, residual, norm)
            return x, y, {}
        x, y, mean, dot = self._add_norm(x, residual, norm, tap.mean_from, tap.w)
        given = {"mean": mean, "dot": dot}
        return x, y, {name: value for name, value in given.items() if value is not None}

    def _add_norm(
        self,
        x: Tensor,
        residual: Tensor,
        norm: nn.LayerNorm,
        mean_from: int | None = None,
        w: Tensor | None = None,
    ) -> ops.AddLayerNorm:
        return ops.add_layer_norm(
            x, residual, norm.weight, norm.bias, norm.eps, self.dtype, mean_from, w
        )

    @torch.inference_mode()
    def _finish(self, parts: list[Observed]) -> Values:
        stages = parts[0].stages
        results = self.method.finish(
            {stage: _joined([part.stages[stage] for part in parts]) for stage in stages}
        )
        if self.head is not None:
            rows = [part.embedding_rows for part in parts if part.embedding_rows is not None]
            results["embedding"] = self.head(torch.cat(rows))
        return results


def _first(count: int, values: Values) -> Values:
    return {name: value[:count] for name, value in values.items()}


def _joined(parts: list[Values]) -> Values:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _prepared(vit: FaceViT, blocks: int, device: torch.device, dtype: torch.dtype) -> FaceViT:
    """The parts that will run, in evaluation mode on ``device``, linear layers in ``dtype``.

    A copy: neither the caller's later training nor its ``.half()`` reaches a scorer. The memo
    keeps deepcopy from the rest, which can be most of the weights.
    """
    used = set(vit.blocks[:blocks])  # a caller may have put one block in two places
    idle: list[nn.Module] = [block for block in vit.blocks[blocks:] if block not in used]
    idle += [vit.norm, vit.feature]
    memo: dict[int, object] = {id(part): nn.Identity() for part in idle}
    prepared = copy.deepcopy(vit, memo).to(device, torch.float32).eval().requires_grad_(False)
    drop_key_biases(prepared)
    cast_linear(prepared, dtype)
    return prepared
