# SPDX-License-Identifier: Apache-2.0
"""torch.compile, with the weights frozen into the program and a fixed batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..entries import Absent, Entry, Ready
from ..subject import Subject
from .eager import torch_dtype

__all__ = ["entries", "forget"]


def entries(subject: Subject, dtype: str) -> list[Entry]:
    """Both graphs."""

    def entry(name: str) -> Entry:
        def prepare(batch_size: int) -> Ready:
            kind = torch_dtype(dtype)
            try:
                graph = subject.graph(name, kind)
            except ValueError as error:
                raise Absent(error) from error
            size = subject.model.config.img_size
            compiled = torch.compile(
                graph, fullgraph=True, dynamic=False, options={"freezing": True}
            )

            @torch.no_grad()  # freezing does not know inference mode
            def run(pixels: Tensor) -> Tensor:
                score: Tensor = compiled(pixels.to(subject.device))[0]
                return score.cpu()

            run(torch.zeros(batch_size, 3, size, size, dtype=torch.uint8))
            return Ready(run, dtype)

        return Entry("torch.compile", name, dtype, prepare)

    return [entry("published"), entry("factorised")]


def forget() -> None:
    """Let go of all compiled programs; torch refuses to keep many of one function."""
    torch._dynamo.reset()
