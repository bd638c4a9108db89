# SPDX-License-Identifier: Apache-2.0
"""The published computation as it is published: torch's operators, one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..entries import Absent, Entry, Ready
from ..subject import Subject

__all__ = ["TORCH_DTYPES", "entries", "torch_dtype"]

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def torch_dtype(dtype: str) -> torch.dtype:
    """Raises :class:`Absent` for an arithmetic that is ours alone."""
    if dtype not in TORCH_DTYPES:
        raise Absent(f"has no {dtype}")
    return TORCH_DTYPES[dtype]


def entries(subject: Subject, dtype: str) -> list[Entry]:
    """The published computation, eagerly."""

    def prepare(batch_size: int) -> Ready:
        graph = subject.graph("published", torch_dtype(dtype))

        @torch.inference_mode()
        def run(pixels: Tensor) -> Tensor:
            score: Tensor = graph(pixels.to(subject.device))[0]
            return score.cpu()

        return Ready(run, dtype)

    return [Entry("eager", "published", dtype, prepare)]
