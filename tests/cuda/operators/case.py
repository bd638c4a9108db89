# SPDX-License-Identifier: Apache-2.0
"""A call with its float64 result, and how exact it has to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emulation.calls import Call

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "fused", "transposed", "every other", "unaligned", "odd rows"]

ULP = 2.0**-23


def double(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def laid_out(tensor: Tensor, layout: str) -> Tensor:  # [..., N, D]
    """The same values at other strides or addresses; NaN wherever there are none of them."""
    *rows, size = tensor.shape

    def inside(shape: tuple[int, ...]) -> Tensor:
        return tensor.new_full(shape, float("nan"))

    if layout == "contiguous":
        view = torch.empty_like(tensor)
    elif layout == "fused":  # as q, k and v come from one projection
        view = inside((*rows, 3 * size))[..., size : 2 * size]
    elif layout == "transposed":
        view = inside((*tensor.shape[:-2], size, rows[-1])).transpose(-1, -2)
    elif layout == "every other":
        view = inside((*rows, 2 * size))[..., ::2]
    elif layout == "unaligned":
        view = inside((tensor.numel() + 1,))[1:].view(tensor.shape)
    elif layout == "odd rows":  # aligned at the start alone
        view = inside((*rows, size + 1))[..., :size]
    else:
        raise ValueError(f"no layout {layout}")
    return view.copy_(tensor)


@dataclass(frozen=True)
class Case:
    call: Call
    expected: dict[str, np.ndarray]  # float64
    eager: dict[str, np.ndarray]  # by torch, in float32 throughout: the hardest to match
    # The largest sum of absolute terms: where they cancel, no float32 sum is exact to an ulp of
    # the result.
    terms: dict[str, float]
    batched: tuple[str, ...]  # inputs with one row per image; all outputs have

    def check(self, got: dict[str, Tensor]) -> None:
        """The error is at most twice eager's, plus two units in the last place."""
        for name, expected in self.expected.items():
            values = double(got[name])
            assert values.shape == expected.shape, name
            allowed = 2 * np.abs(self.eager[name] - expected).max() + 2 * ULP * self.terms[name]
            error = np.abs(values - expected).max()
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"

    def check_strictly(self, got: dict[str, Tensor]) -> None:
        """A few units in the last place of the terms, whatever eager does."""
        for name, expected in self.expected.items():
            error = np.abs(double(got[name]) - expected).max()
            assert error <= 8 * ULP * self.terms[name], f"{name}: error {error:.3g}"

    def part(self, images: slice) -> Call:
        """The call for some images alone."""
        tensors = dict(self.call.tensors)
        for name in self.batched:
            tensors[name] = tensors[name][images]
        for name in self.call.outputs:
            tensors[name] = torch.empty_like(tensors[name][images])
        return Call(self.call.operation, tensors, self.call.outputs, self.call.numbers)


def parameter(size: int, dtype: torch.dtype, kind: int, generator: torch.Generator) -> Tensor:
    """A weight or bias: float32 or of the input's dtype, contiguous or a strided view."""
    values = torch.randn(size, generator=generator).to(dtype if kind % 2 else torch.float32)
    return laid_out(values[None], "every other")[0] if kind // 2 % 2 else values
