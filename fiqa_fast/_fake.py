# SPDX-License-Identifier: Apache-2.0
"""Fake implementations of the operators: what torch's compiler knows of their results.

They repeat the checks of csrc/ops/<op>.h in the same words; shapes may be symbolic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Registers the schemas.
from fiqa_fast import _load  # noqa: F401

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of attention_logits_stats.
MAX_HEAD_DIM = 128


def _shape(t: Tensor) -> str:
    return f"[{', '.join(map(str, t.shape))}]"


def _check_dtype(op: str, name: str, t: Tensor) -> None:
    torch._check(
        t.dtype in _DTYPES,
        lambda: f"{op}: {name} should be float32, bfloat16 or float16, got {t.dtype}",
    )


def _check_device(op: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    torch._check(
        t.device == like.device,
        lambda: (
            f"{op}: {name} should be on the device of {like_name}, {like.device}, got {t.device}"
        ),
    )


def _check_layer_norm(
    op: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    torch._check(x.dim() == 3, lambda: f"{op}: x should be [B, N, D], got {_shape(x)}")
    for size in x.shape[1:]:
        torch._check(
            size > 0,
            lambda: f"{op}: x should have N > 0 tokens of D > 0 channels, got {_shape(x)}",
        )
    _check_dtype(op, "x", x)
    torch._check(
        math.isfinite(eps) and eps >= 0,
        lambda: f"{op}: eps should be finite and not negative, got {eps:g}",
    )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue

        def text(name: str = name, parameter: Tensor = parameter) -> str:
            return (
                f"{op}: {name} should have shape [{x.shape[2]}], the last of x,"
                f" got {_shape(parameter)}"
            )

        torch._check(parameter.dim() == 1, text)
        torch._check(parameter.shape[0] == x.shape[2], text)
        _check_device(op, name, parameter, "x", x)
        _check_dtype(op, name, parameter)


def _check_residual(op: str, x: Tensor, residual: Tensor) -> None:
    def text() -> str:
        return f"{op}: residual should have the shape of x, {_shape(x)}, got {_shape(residual)}"

    torch._check(residual.dim() == 3, text)
    for axis in range(3):
        torch._check(residual.shape[axis] == x.shape[axis], text)
    _check_device(op, "residual", residual, "x", x)
    _check_dtype(op, "residual", residual)


@torch.library.register_fake("fiqa_fast::mean_layer_norm")
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    u: Tensor | None,
) -> tuple[Tensor, Tensor]:
    op = "mean_layer_norm"
    _check_layer_norm(op, x, weight, bias, eps)
    if residual is not None:
        _check_residual(op, x, residual)
        torch._check(
            residual.dtype == x.dtype or x.dtype == torch.float32,
            lambda: (
                f"{op}: residual should have the dtype of x, {x.dtype}, where that is not float32,"
                f" got {residual.dtype}"
            ),
        )
    B, N, D = x.shape
    if u is not None:

        def text() -> str:
            return (
                f"{op}: u should have shape [{B}, {D}], the images and channels of x, got"
                f" {_shape(u)}"
            )

        torch._check(u.dim() == 2, text)
        torch._check(u.shape[0] == B, text)
        torch._check(u.shape[1] == D, text)
        _check_device(op, "u", u, "x", x)
        torch._check(u.dtype == torch.float32, lambda: f"{op}: u should be float32, got {u.dtype}")
    return (
        x.new_empty((B, D), dtype=torch.float32),
        x.new_empty((B, N) if u is not None else (0,), dtype=torch.float32),
    )


@torch.library.register_fake("fiqa_fast::layer_norm_dot")
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, w: Tensor) -> Tensor:
    op = "layer_norm_dot"
    _check_layer_norm(op, x, weight, bias, eps)

    def text() -> str:
        return (
            f"{op}: w should have shape [{x.shape[1]}, {x.shape[2]}], the tokens and channels of x,"
            f" got {_shape(w)}"
        )

    torch._check(w.dim() == 2, text)
    for axis in (0, 1):
        torch._check(w.shape[axis] == x.shape[axis + 1], text)
    _check_device(op, "w", w, "x", x)
    torch._check(w.dtype == torch.float32, lambda: f"{op}: w should be float32, got {w.dtype}")
    return x.new_empty((x.shape[0],), dtype=torch.float32)


@torch.library.register_fake("fiqa_fast::add_layer_norm")
def _(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    mean_from: int,
    w: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "add_layer_norm"
    _check_layer_norm(op, x, weight, bias, eps)
    torch._check(x.dtype == torch.float32, lambda: f"{op}: x should be float32, got {x.dtype}")
    _check_residual(op, x, residual)
    B, N, D = x.shape
    torch._check(
        -1 <= mean_from < N,
        lambda: f"{op}: mean_from should be -1 or a token of x, below {N}, got {mean_from}",
    )
    if w is not None:

        def w_text() -> str:
            return (
                f"{op}: w should have at most the tokens and all channels of x, [1 to {N}, {D}],"
                f" got {_shape(w)}"
            )

        torch._check(w.dim() == 2, w_text)
        torch._check(w.shape[0] > 0, w_text)
        torch._check(w.shape[0] <= N, w_text)
        torch._check(w.shape[1] == D, w_text)
        _check_device(op, "w", w, "x", x)
        torch._check(w.dtype == torch.float32, lambda: f"{op}: w should be float32, got {w.dtype}")
    torch._check(
        dtype in _DTYPES,
        lambda: f"{op}: dtype should be float32, bfloat16 or float16, got {dtype}",
    )
    return (
        x.new_empty((B, N, D)),
        x.new_empty((B, N, D), dtype=dtype),
        x.new_empty((B, D) if mean_from >= 0 else (0,)),
        x.new_empty((B,) if w is not None else (0,)),
    )


@torch.library.register_fake("fiqa_fast::batch_invariant_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    op = "batch_invariant_linear"
    torch._check(x.dim() == 2, lambda: f"{op}: x should be [B, K], got {_shape(x)}")

    def columns() -> str:
        return (
            f"{op}: weight should be [O, {x.shape[1]}], with as many columns as x, got"
            f" {_shape(weight)}"
        )

    torch._check(weight.dim() == 2, columns)
    torch._check(weight.shape[1] == x.shape[1], columns)
    for size in weight.shape:
        torch._check(
            size > 0, lambda: f"{op}: weight should have O > 0 and K > 0, got {_shape(weight)}"
        )
    torch._check(x.dtype == torch.float32, lambda: f"{op}: x should be float32, got {x.dtype}")
    _check_dtype(op, "weight", weight)
    _check_device(op, "weight", weight, "x", x)
    if bias is not None:

        def rows() -> str:
            return (
                f"{op}: bias should have shape [{weight.shape[0]}], one for each row of weight, got"
                f" {_shape(bias)}"
            )

        torch._check(bias.dim() == 1, rows)
        torch._check(bias.shape[0] == weight.shape[0], rows)
        _check_device(op, "bias", bias, "x", x)
        _check_dtype(op, "bias", bias)
    return x.new_empty((x.shape[0], weight.shape[0]))


def _check_attention_logits(op: str, q: Tensor, k: Tensor) -> None:
    torch._check(q.dim() == 4, lambda: f"{op}: q should be [B, H, Nq, d], got {_shape(q)}")
    torch._check(k.dim() == 4, lambda: f"{op}: k should be [B, H, Nk, d], got {_shape(k)}")
    for axis in (0, 1, 3):
        torch._check(
            q.shape[axis] == k.shape[axis],
            lambda: f"{op}: q and k should agree in B, H and d, got {_shape(q)} and {_shape(k)}",
        )
    for size in (*q.shape[1:], k.shape[2]):
        torch._check(
            size > 0,
            lambda: (
                f"{op}: q and k should have H > 0, N > 0 and d > 0, got {_shape(q)} and {_shape(k)}"
            ),
        )
    _check_dtype(op, "q", q)
    torch._check(
        k.dtype == q.dtype, lambda: f"{op}: k should have the dtype of q, {q.dtype}, got {k.dtype}"
    )
    _check_device(op, "k", k, "q", q)


@torch.library.register_fake("fiqa_fast::attention_logits_mean")
def _(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_attention_logits("attention_logits_mean", q, k)
    B, H, Nq, d = q.shape
    Nk = k.shape[2]

    def empty(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=torch.float32)

    return empty(B, H), empty(B, Nk), empty(B, Nq), empty(B, H, d)


@torch.library.register_fake("fiqa_fast::attention_logits_stats")
def _(
    q: Tensor, k: Tensor, scale: float, stats: int, average_heads: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    op = "attention_logits_stats"
    _check_attention_logits(op, q, k)
    B, H, Nq, d = q.shape
    Nk = k.shape[2]
    torch._check(
        d <= MAX_HEAD_DIM, lambda: f"{op}: head_dim should be at most {MAX_HEAD_DIM}, got {d}"
    )
    torch._check(
        0 < stats < 16,
        lambda: (
            f"{op}: stats should be a sum of 1 (moments), 2 (centered_variance), 4 (softmax) and 8"
            f" (median), got {stats}"
        ),
    )
    heads = 1 if average_heads else H

    def empty_if(asked: int, *shape: int) -> Tensor:
        return q.new_empty(shape if asked else (0,), dtype=torch.float32)

    moments, softmax, median = stats & 3, stats & 4, stats & 8
    return (
        empty_if(moments, B, heads, 7),
        empty_if(moments, B, 7),
        empty_if(moments, B, Nk),
        empty_if(moments, B, Nq),
        empty_if(softmax, B, heads, Nq),
        empty_if(softmax, B, heads, Nq),
        empty_if(median, B),
    )
