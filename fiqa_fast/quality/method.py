# SPDX-License-Identifier: Apache-2.0
"""What an engine needs to know of a quality method.

An engine runs the blocks and shows the method the residual stream at the stages it asked for:
stage l is the stream after l blocks, so stage 0 is the input of block 1. A method keeps small
per-image values of what it saw and turns them into the results at the end.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Values = dict[str, Tensor]  # per-image values by name, images first


class QualityMethod(Protocol):
    """A way to read quality off the residual stream of a ViT."""

    stages: frozenset[int]

    def observe(self, stage: int, x: Tensor) -> Values:
        """Values of x [B, N, D], float32, the stream after ``stage`` blocks."""
        ...

    def finish(self, observed: dict[int, Values]) -> Values:
        """Results by output name from what :meth:`observe` returned at every stage."""
        ...
