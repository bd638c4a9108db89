# SPDX-License-Identifier: Apache-2.0
"""The rate at which torch's own libraries multiply matrices of the blocks' sizes.

An engine that only multiplied, at this rate, would reach the bound; so what it loses to everything
else is read off as a share of it. An engine with faster products may pass it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..models.config import ViTConfig
from ..models.packed import PackedLinear, can_pack
from ..models.vit import Linear
from .peers.eager import TORCH_DTYPES

__all__ = ["Products", "products"]

Shapes = tuple[tuple[int, int], ...]  # features in and out, of each layer of a block


@dataclass(frozen=True)
class Products:
    """The products of one block's linear layers, for all images of a batch at once.

    Attributes:
        function: computes them; its argument is ignored.
        done: floating-point operations per image in a call; a multiply-add is two.
        needed: per image, by all blocks that run, attention's two products included.
    """

    library: str
    dtype: str
    function: Callable[[Any], object]
    done: int
    needed: int

    @property
    def key(self) -> str:
        """Different for every one of a race."""
        return f"GEMM {self.library}, {self.dtype}"


def products(
    config: ViTConfig, blocks: int, batch_size: int, dtype: str, device: torch.device
) -> list[Products]:
    """One entry per library that has this arithmetic; none where no block runs."""
    n, d, hidden = config.num_tokens, config.embed_dim, config.hidden_dim
    shapes = ((d, 3 * d), (d, d), (d, hidden), (hidden, d))
    done = sum(2 * n * before * after for before, after in shapes)
    rows = batch_size * n
    functions: dict[str, Callable[[Any], object]] = {}
    if not blocks:
        return []
    if dtype in TORCH_DTYPES:
        functions = _floating(shapes, rows, TORCH_DTYPES[dtype], device)
    elif dtype == "int8" and device.type == "cpu":
        functions = _int8(shapes, rows)
    needed = blocks * (done + 4 * n * n * d)
    return [
        Products(library, dtype, function, done, needed) for library, function in functions.items()
    ]


def _floating(
    shapes: Shapes, rows: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[Any], object]]:
    inputs = {k: torch.randn(rows, k).to(device, dtype) for k, _ in shapes}
    weights = [torch.randn(n, k).to(device, dtype) for k, n in shapes]
    outputs = [torch.empty(rows, n, dtype=dtype, device=device) for _, n in shapes]

    @torch.inference_mode()
    def plain(_: Any) -> object:
        for weight, out in zip(weights, outputs, strict=True):
            torch.mm(inputs[weight.shape[1]], weight.t(), out=out)
        return outputs[-1][0, 0].item()  # by then a GPU has done it

    if device.type != "cpu" or not can_pack(dtype):
        return {"torch": plain}
    layers = [PackedLinear(_linear(weight), rows) for weight in weights]

    @torch.inference_mode()
    def packed(_: Any) -> object:
        return [layer(inputs[k]).shape for layer, (k, _) in zip(layers, shapes, strict=True)]

    return {"torch": plain, "oneDNN": packed}


def _linear(weight: torch.Tensor) -> Linear:
    linear = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


def _int8(shapes: Shapes, rows: int) -> dict[str, Callable[[Any], object]]:
    ops = torch.ops.onednn
    if not hasattr(ops, "qlinear_pointwise"):
        return {}
    inputs = {k: torch.randint(0, 256, (rows, k), dtype=torch.uint8) for k, _ in shapes}
    layers = []
    for k, n in shapes:
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        scales, zeros = torch.full((n,), 1 / k), torch.zeros(n, dtype=torch.int64)
        layers.append((k, ops.qlinear_prepack(weight, [rows, k]), scales, zeros))

    @torch.inference_mode()
    def quantised(_: Any) -> object:
        return [
            ops.qlinear_pointwise(
                inputs[k], 1.0, 128, weight, scales, zeros, None, 1.0, 128, torch.uint8, "none",
                [], "",
            ).shape
            for k, weight, scales, zeros in layers
        ]  # fmt: skip

    return {"oneDNN": quantised}
