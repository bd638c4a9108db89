# SPDX-License-Identifier: Apache-2.0
"""The GPU engine: the eager engine's computation as one CUDA graph, its copies beside it.

A small ViT is a few hundred short kernels per group; a graph launches them at once, not one by one.
What is computed, and in which shape, is what the eager engine computes on a GPU: the whole way from
normalised pixels to results.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..hardware import FLOAT32_PRECISIONS, float32_arithmetic
from ..models.vit import FaceViT
from ..quality.method import QualityMethod, Values
from .accelerator import Accelerator
from .cuda import Cuda
from .eager import GPU_GROUP, EagerEngine, fill
from .pipeline import Pipeline


def reason_against(device: torch.device) -> str:
    """Why the engine does not run there; empty where it may."""
    return "" if device.type == "cuda" else f"it runs on a GPU, not on {device}"


class GraphEngine(EagerEngine):
    """torch's operators and our own, captured once and replayed.

    Args:
        group: images that are computed together.
        accelerator: in place of the CUDA device; with one that is not a GPU, ``device`` is the CPU.

    Raises:
        CaptureError: the model does something that cannot be replayed.
    """

    name = "graphs"

    def __init__(
        self,
        vit: FaceViT,
        method: QualityMethod,
        *,
        device: torch.device,
        group: int = GPU_GROUP,
        accelerator: Accelerator | None = None,
        **options: Any,
    ) -> None:
        self.wanted_group = group
        self.accelerator = Cuda(device) if accelerator is None else accelerator
        super().__init__(vit, method, device=device, **options)

    def images_per_group(self) -> int:
        return self.wanted_group

    def build(self, vit: FaceViT) -> None:
        super().build(vit)
        side = self.vit.config.img_size
        # The settings count where kernels are chosen, which a replay does not do.
        with float32_arithmetic(FLOAT32_PRECISIONS[self.float32_precision], self.device.type):
            self.pipeline = Pipeline(
                self.accelerator,
                (self.group, 3, side, side),
                partial(fill, minus_one=self.minus_one),
                self.whole,
            )
        self.process = os.getpid()

    def run(self, images: Tensor) -> Values:
        if os.getpid() != self.process:
            raise RuntimeError(
                "this scorer's GPU belongs to the process that made it, and CUDA does not survive "
                "a fork: make the scorer in the process that uses it"
            )
        results = self.pipeline.run(images)
        return {name: torch.from_numpy(array) for name, array in results.items()}

    def whole(self, images: Tensor) -> Values:
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            return super().whole(images)
