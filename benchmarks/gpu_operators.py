# SPDX-License-Identifier: Apache-2.0
"""The operators that benchmarks/gpu.py measures: one entry each in OPERATORS.

Sizes and eager formulas are those of the operator's own benchmark. A new entry says how its inputs
are made, which functions compute the same, and what the computation costs at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bench_add_layer_norm
import bench_attention_logits_mean
import bench_attention_logits_stats
import bench_attention_with_quality
import bench_batch_invariant_linear
import bench_layer_norm_dot
import bench_mean_layer_norm
from fiqa_fast import ops, reference
from gpu_roofline import Cost

EPS = 1e-5
# FLOP of a LayerNorm's statistics per element: one addition for the mean, a subtraction, an
# addition and a multiply-add for the variance and what the mean lacks.
_STATISTICS = 5

Size = tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    name: str
    sizes: tuple[Size, ...]  # of which a quick run takes the first; all begin with the images
    make: Callable[[Size, torch.dtype, torch.device], tuple[Any, ...]]
    function: Callable[..., Any]
    eager: Callable[..., Any]
    reference: Callable[..., Any]
    cost: Callable[[Size, int], Cost]  # of a size and the bytes of an element


def _parameters(D: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.rand(D, device=device).to(dtype), torch.randn(D, device=device).to(dtype)


def _tokens(size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(size, device=device).to(dtype)


def _mean_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    return _tokens(size, dtype, device), *_parameters(size[-1], dtype, device)


def _mean_cost(size: Size, itemsize: int) -> Cost:
    B, N, D = size
    # Two subtractions and a multiply-add per element normalise and add.
    return Cost(itemsize * (B * N * D + 2 * D) + 4 * B * D, (_STATISTICS + 4) * B * N * D)


def _sum_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    return *_mean_inputs(size, dtype, device), _tokens(size, dtype, device)


def _sum_cost(size: Size, itemsize: int) -> Cost:
    B, N, D = size
    mean = _mean_cost(size, itemsize)
    return Cost(mean.bytes + itemsize * B * N * D, mean.flops + B * N * D)


def _sum_reference(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Any:
    return reference.mean_layer_norm(x, weight, bias, EPS, residual)


def _map_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    B, _, D = size
    return *_mean_inputs(size, dtype, device), torch.randn(B, D, device=device) / D**0.5


def _map_cost(size: Size, itemsize: int) -> Cost:
    B, N, D = size
    mean = _mean_cost(size, itemsize)
    return Cost(mean.bytes + 4 * B * (D + N), mean.flops + 2 * B * N * D)


def _map_reference(x: Tensor, weight: Tensor, bias: Tensor, u: Tensor) -> Any:
    return reference.mean_layer_norm_map(x, weight, bias, EPS, u)


def _dot_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    w = torch.randn(size[1:], device=device) / size[1]
    return *_mean_inputs(size, dtype, device), EPS, w


def _dot_cost(size: Size, itemsize: int) -> Cost:
    B, N, D = size
    moved = itemsize * (B * N * D + 2 * D) + 4 * (N * D + B)
    return Cost(moved, (_STATISTICS + 2) * B * N * D)


def _add_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    x, residual = _tokens(size, torch.float32, device), _tokens(size, dtype, device)
    return x, residual, *_parameters(size[-1], torch.float32, device), EPS, dtype


def _add_cost(size: Size, itemsize: int) -> Cost:
    B, N, D = size
    # x and the sum are float32, the residual and what is normed have the dtype.
    moved = (4 + itemsize + 4 + itemsize) * B * N * D + 2 * 4 * D
    # The sum; then two subtractions, a product and a multiply-add.
    return Cost(moved, (1 + _STATISTICS + 5) * B * N * D)


def _linear_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    B, K, outputs = size
    weight = (torch.randn(outputs, K, device=device) / K**0.5).to(dtype)
    return torch.randn(B, K, device=device), weight, torch.randn(outputs, device=device)


def _linear_cost(size: Size, itemsize: int) -> Cost:
    B, K, outputs = size
    return Cost(
        4 * B * K + itemsize * outputs * K + 4 * outputs + 4 * B * outputs, 2 * B * K * outputs
    )


def _attention_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    B, H, N, d = size
    q, k, _ = torch.randn(B, N, 3, H, d, device=device).to(dtype).permute(2, 0, 3, 1, 4)
    return q, k


def _attention_cost(size: Size, itemsize: int) -> Cost:
    B, H, N, d = size
    outputs = B * H + 2 * B * N + B * H * d
    # An addition for the mean and a multiply-add for the map, per element of q and of k.
    return Cost(itemsize * 2 * B * H * N * d + 4 * outputs, 3 * 2 * B * H * N * d + 2 * B * H * d)


def _attention_reference(q: Tensor, k: Tensor) -> Any:
    return reference.attention_logits_mean(q, k, bench_attention_logits_mean.SCALE)


def _stats_cost(size: Size, itemsize: int, outputs: int) -> Cost:
    B, H, N, d = size
    unit = "float32" if itemsize == 4 else "bfloat16"
    # The products alone: what the reductions cost depends on how they are done.
    return Cost(itemsize * 2 * B * H * N * d + 4 * outputs, 2 * B * H * N * N * d, unit)


def _moments_cost(size: Size, itemsize: int) -> Cost:
    B, H, N, _ = size
    return _stats_cost(size, itemsize, 6 * B * (H + 1) + 2 * B * N)


def _softmax_cost(size: Size, itemsize: int) -> Cost:
    B, H, N, _ = size
    return _stats_cost(size, itemsize, 2 * B * H * N)


def _median_cost(size: Size, itemsize: int) -> Cost:
    return _stats_cost(size, itemsize, size[0])


def _stats(name: str, cost: Callable[[Size, int], Cost]) -> Operator:
    def function(q: Tensor, k: Tensor) -> Any:
        return ops.attention_logits_stats(q, k, _STATS.SCALE, (name,))

    def expected(q: Tensor, k: Tensor) -> Any:
        return reference.attention_logits_stats(q, k, _STATS.SCALE, (name,))

    def eager(q: Tensor, k: Tensor) -> Any:
        return reference.attention_logits_stats(q, k, _STATS.SCALE, (name,), dtype=q.dtype)

    shown = "attention_logits_stats" + (f".{name}" if name != "moments" else "")
    sizes = ((_STATS.B, _STATS.H, _STATS.N, _STATS.d),)
    return Operator(shown, sizes, _attention_inputs, function, eager, expected, cost)


def _values_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    B, H, N, d = size
    return tuple(torch.randn(B, N, 3, H, d, device=device).to(dtype).permute(2, 0, 3, 1, 4))


def _values_cost(size: Size, itemsize: int) -> Cost:
    B, H, N, d = size
    unit = "float32" if itemsize == 4 else "bfloat16"
    moved = itemsize * 4 * B * H * N * d + 4 * (B * N + B * H)
    return Cost(moved, 4 * B * H * N * N * d, unit)


def _values_reference(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return reference.attention_with_quality(q, k, v, bench_attention_with_quality.SCALE)


def _without_dtype(*arguments: Any) -> Any:
    return reference.add_layer_norm(*arguments[:-1])


_ATTENTION = bench_attention_logits_mean
_STATS = bench_attention_logits_stats
_VALUES = bench_attention_with_quality

OPERATORS = [
    Operator(
        "mean_layer_norm",
        (bench_mean_layer_norm.SHAPE,),
        _mean_inputs,
        ops.mean_layer_norm,
        bench_mean_layer_norm.eager,
        reference.mean_layer_norm,
        _mean_cost,
    ),
    Operator(
        "mean_layer_norm.residual",
        (bench_mean_layer_norm.SHAPE,),
        _sum_inputs,
        bench_mean_layer_norm.fused,
        bench_mean_layer_norm.eager,
        _sum_reference,
        _sum_cost,
    ),
    Operator(
        "mean_layer_norm.map",
        (bench_mean_layer_norm.SHAPE,),
        _map_inputs,
        bench_mean_layer_norm.fused_map,
        bench_mean_layer_norm.eager_map,
        _map_reference,
        _map_cost,
    ),
    Operator(
        "layer_norm_dot",
        (bench_layer_norm_dot.SHAPE,),
        _dot_inputs,
        ops.layer_norm_dot,
        bench_layer_norm_dot.eager,
        reference.layer_norm_dot,
        _dot_cost,
    ),
    Operator(
        "add_layer_norm",
        (bench_add_layer_norm.SHAPE,),
        _add_inputs,
        ops.add_layer_norm,
        bench_add_layer_norm.eager,
        _without_dtype,
        _add_cost,
    ),
    Operator(
        "batch_invariant_linear",
        tuple((16, *shape) for shape in bench_batch_invariant_linear.SHAPES.values()),
        _linear_inputs,
        ops.batch_invariant_linear,
        bench_batch_invariant_linear.eager,
        reference.batch_invariant_linear,
        _linear_cost,
    ),
    Operator(
        "attention_logits_mean",
        ((_ATTENTION.B, _ATTENTION.H, _ATTENTION.N, _ATTENTION.d),),
        _attention_inputs,
        _ATTENTION.fiqa_fast,
        _ATTENTION.factorised,
        _attention_reference,
        _attention_cost,
    ),
    _stats("moments", _moments_cost),
    _stats("softmax", _softmax_cost),
    _stats("median", _median_cost),
    Operator(
        "attention_with_quality",
        ((_VALUES.B, _VALUES.H, _VALUES.N, _VALUES.d),),
        _values_inputs,
        _VALUES.fiqa_fast,
        _VALUES.logits,
        _values_reference,
        _values_cost,
    ),
    # The same output and quality, the latter from all logits: should a GPU like it better.
    Operator(
        "attention_with_quality.tiles",
        ((_VALUES.B, _VALUES.H, _VALUES.N, _VALUES.d),),
        _values_inputs,
        _VALUES.tiles,
        _VALUES.logits,
        _values_reference,
        _values_cost,
    ),
]
