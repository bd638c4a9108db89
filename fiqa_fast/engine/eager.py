# SPDX-License-Identifier: Apache-2.0
"""The eager engine: torch operators, image group by image group.

Results are bitwise independent of batching and threads by construction: images go through the
blocks in groups of one fixed shape, the last one padded, and on the CPU each group is computed by
one thread (see :mod:`fiqa_fast.workers`). Block products run in the chosen dtype; patch
embedding, residual stream, norms and everything a quality method computes are float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..models.casting import cast_linear, drop_key_biases
from ..models.vit import FaceViT
from ..quality.method import QualityMethod, Values
from ..workers import run_all, run_alone
from .hardware import FLOAT32_PRECISIONS, float32_arithmetic
from .packed import can_pack, pack_blocks

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
        self.method, self.embedding = method, embedding
        self.device = device
        self.last_stage = vit.config.depth if embedding else max(method.stages)
        self.vit = _prepared(vit, self.last_stage, embedding, device, dtype)
        tokens = vit.config.num_tokens
        on_cpu = device.type == "cpu"
        self.group = cpu_group(tokens) if on_cpu else CUDA_GROUP
        # What has one row per image, not per token, is computed image by image on a CPU.
        self.unit = 1 if on_cpu else self.group
        if on_cpu and can_pack(dtype):
            pack_blocks(self.vit, self.group * tokens)
        self.float32_mode = FLOAT32_PRECISIONS[float32_precision]

    def run(self, images: Tensor) -> Values:
        """uint8 RGB [B, 3, S, S], or normalised float32, to results by output name, on the CPU."""
        count = len(images)
        if count == 0:  # shapes come from the one place that knows them
            return {
                name: t[:0] for name, t in self.run(images.new_zeros(1, *images.shape[1:])).items()
            }
        groups = images.split(self.group)
        results: list[Values] = [{} for _ in groups]

        def task(number: int) -> None:
            results[number] = self._run_group(groups[number])

        with float32_arithmetic(self.float32_mode, self.device.type):
            if self.device.type == "cpu":
                run_all(task, len(groups))
            else:
                with torch.autocast(self.device.type, enabled=False):
                    for number in range(len(groups)):
                        task(number)
        joined = run_alone(lambda: _joined(results))
        return {name: tensor.cpu() for name, tensor in joined.items()}

    @torch.inference_mode()
    def _run_group(self, images: Tensor) -> Values:
        count = len(images)
        # Asynchronously to a GPU only: a CPU thread would read pixels before they arrive.
        images = images.to(self.device, non_blocking=self.device.type == "cuda")
        if count < self.group:
            images = torch.cat([images, images.new_zeros(self.group - count, *images.shape[1:])])
        if images.dtype == torch.uint8:
            images = images.float().div_(255).sub_(0.5).div_(0.5)
        x = self.vit.embed(images)
        seen: list[dict[int, Values]] = [{} for _ in range(0, count, self.unit)]
        for stage in range(self.last_stage + 1):
            if stage > 0:
                x = self.vit.blocks[stage - 1](x)
            if stage in self.method.stages:
                for part, observed in zip(x.split(self.unit), seen, strict=False):
                    observed[stage] = self.method.observe(stage, part)
        results = [self.method.finish(observed) for observed in seen]
        if self.embedding:
            for part, values in zip(x.split(self.unit), results, strict=False):
                values["embedding"] = self.vit.head(part).float()
        return {name: tensor[:count] for name, tensor in _joined(results).items()}


def _joined(parts: list[Values]) -> Values:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _prepared(
    vit: FaceViT, blocks: int, head: bool, device: torch.device, dtype: torch.dtype
) -> FaceViT:
    """The parts that will run, in evaluation mode on ``device``, linear layers in ``dtype``.

    A copy: neither the caller's later training nor its ``.half()`` reaches a scorer. The memo
    keeps deepcopy from the rest, which can be most of the weights.
    """
    idle: list[nn.Module] = list(vit.blocks[blocks:])
    if not head:
        idle += [vit.norm, vit.feature]
    memo: dict[int, object] = {id(part): nn.Identity() for part in idle}
    prepared = copy.deepcopy(vit, memo).to(device, torch.float32).eval().requires_grad_(False)
    drop_key_biases(prepared)
    cast_linear(prepared, dtype)
    return prepared
