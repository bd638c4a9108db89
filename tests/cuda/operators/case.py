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


def _largest(values: np.ndarray, columns: int) -> np.ndarray:
    """Of each column; NaN, such as the unbiased variance of one number, counts as nothing."""
    return np.nan_to_num(np.abs(values)).reshape(-1, columns).max(0)


@dataclass(frozen=True)
class Case:
    call: Call
    expected: dict[str, np.ndarray]  # float64
    eager: dict[str, np.ndarray]  # by torch, in float32 throughout: the hardest to match
    # The largest sum of absolute terms: where they cancel, no float32 sum is exact to an ulp of
    # the result. One for all, or one for each of the last axis.
    terms: dict[str, float | list[float]]
    batched: tuple[str, ...]  # inputs with one row per image; all outputs have

    def check(self, got: dict[str, Tensor]) -> None:
        """The error is at most twice eager's, plus two units in the last place."""
        for name, expected in self.expected.items():
            terms = np.asarray(self.terms[name])
            eager = _largest(self.eager[name] - expected, terms.size)
            self._check(name, got[name], 2 * eager + 2 * ULP * terms)

    def check_strictly(self, got: dict[str, Tensor]) -> None:
        """A few units in the last place of the terms, whatever eager does."""
        for name in self.expected:
            self._check(name, got[name], 8 * ULP * np.asarray(self.terms[name]))

    def _check(self, name: str, got: Tensor, allowed: np.ndarray) -> None:
        values, expected = double(got), self.expected[name]
        assert values.shape == expected.shape, name
        assert np.array_equal(np.isnan(values), np.isnan(expected)), name
        error = _largest(values - expected, allowed.size)
        assert (error <= allowed).all(), f"{name}: error {error}, allowed {allowed}"

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
