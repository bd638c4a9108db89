# SPDX-License-Identifier: Apache-2.0
"""Typed wrappers of ``torch.ops.fiqa_fast.*``, and what torch's compiler has to know about each.

All operators are inference-only: they accept tensors that require grad, but a backward pass raises.
They accumulate in float32 and return contiguous float32 tensors, and an image's result is the same,
bit for bit, whatever the batch, the number of threads and the memory layout.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fiqa_fast._load import cuda_status

__all__ = [
    "AddLayerNorm",
    "AttentionLogitsMean",
    "add_layer_norm",
    "attention_logits_mean",
    "batch_invariant_linear",
    "layer_norm_dot",
    "mean_layer_norm",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class AttentionLogitsMean(NamedTuple):
    """Means of the attention logits; the attention's score is the mean of ``head_scores``."""

    head_scores: Tensor  # [B, H]
    key_map: Tensor  # [B, Nk]
    query_map: Tensor  # [B, Nq]
    q_mean: Tensor  # [B, H, d]


class AddLayerNorm(NamedTuple):
    """A residual sum, its LayerNorm, and what was asked for beside them."""

    sum: Tensor  # [B, N, D], float32
    normed: Tensor  # [B, N, D]
    mean: Tensor | None  # [B, D], float32
    dot: Tensor | None  # [B], float32


def mean_layer_norm(
    x: Tensor,  # [B, N, D]
    weight: Tensor | None = None,  # [D]
    bias: Tensor | None = None,  # [D]
    eps: float = 1e-5,
) -> Tensor:
    """The mean over tokens of LayerNorm(x), in one pass over x.

    ::

        y_i = (x_i - mean(x_i)) / sqrt(var(x_i) + eps) * weight + bias
        out = (1/N) sum_i y_i

    Args:
        x: tokens [B, N, D], float32, bfloat16 or float16, any strides.
        weight: [D], any of these dtypes, or None for ones.
        bias: [D], any of these dtypes, or None for zeros.
        eps: added to the (biased) variance; finite, not negative.

    Returns:
        [B, D], float32.

    Raises:
        RuntimeError: a shape, dtype, device or eps is not as above, N or D is 0, or gradients are
            asked for.
    """
    out: Tensor = torch.ops.fiqa_fast.mean_layer_norm(x, weight, bias, eps)
    return out


def layer_norm_dot(
    x: Tensor,  # [B, N, D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    w: Tensor,  # [N, D]
) -> Tensor:
    """The dot product of LayerNorm(x), all tokens of an image, with w, in one pass over x.

    In evaluation mode the C and full heads of ViT-FIQA (arXiv 2508.13957) are affine from the
    normed tokens to the score (Linear and BatchNorm layers only), so they fold into one vector w_n
    per token and a constant, and the score is this dot product plus the constant::

        y_n = (x_n - mean(x_n)) / sqrt(var(x_n) + eps) * weight + bias
        out = sum_n y_n . w_n

    Args:
        x: tokens [B, N, D], float32, bfloat16 or float16, any strides.
        weight: [D], any of these dtypes, or None for ones.
        bias: [D], any of these dtypes, or None for zeros.
        eps: added to the (biased) variance; finite, not negative.
        w: [N, D], float32, any strides.

    Returns:
        [B], float32.

    Raises:
        RuntimeError: a shape, dtype, device or eps is not as above, N or D is 0, or gradients are
            asked for.
    """
    out: Tensor = torch.ops.fiqa_fast.layer_norm_dot(x, weight, bias, eps, w)
    return out


def add_layer_norm(
    x: Tensor,  # [B, N, D]
    residual: Tensor,  # [B, N, D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    dtype: torch.dtype = torch.float32,
    mean_from: int | None = None,
    w: Tensor | None = None,  # [M, D]
) -> AddLayerNorm:
    """x + residual and its LayerNorm, with the quality that a block's norm gives on its way.

    A block ends with a sum and the next begins with its norm: one reading of each input does both,
    and rounds to the dtype that the next product wants. On that way the tokens give what
    ATTN-FIQA's score (arXiv 2604.22841) and ViT-FIQA's heads (arXiv 2508.13957) read of them::

        sum    = x + residual
        y_n    = (sum_n - mean(sum_n)) / sqrt(var(sum_n) + eps)
        normed = y * weight + bias
        mean   = mean_layer_norm(sum[:, mean_from:], weight, bias, eps)
        dot    = layer_norm_dot(sum[:, :M], None, None, eps, w)

    bit for bit as those operators compute them.

    Args:
        x: residual stream [B, N, D], float32, any strides.
        residual: [B, N, D], float32, bfloat16 or float16, any strides.
        weight: [D], any of these dtypes, or None for ones.
        bias: [D], any of these dtypes, or None for zeros.
        eps: added to the (biased) variance; finite, not negative.
        dtype: of ``normed``: float32, bfloat16 or float16.
        mean_from: the first token of ``mean``, or None for no mean.
        w: [M, D], float32, M <= N, any strides; or None for no dot product.

    Returns:
        sum [B, N, D] float32, normed [B, N, D], mean [B, D] float32 or None, dot [B] float32 or
        None.

    Raises:
        RuntimeError: a shape, dtype, device or number is not as above, N or D is 0, or gradients
            are asked for.
    """
    sum, normed, mean, dot = torch.ops.fiqa_fast.add_layer_norm(
        x, residual, weight, bias, eps, dtype, -1 if mean_from is None else mean_from, w
    )
    return AddLayerNorm(
        sum, normed, None if mean_from is None else mean, None if w is None else dot
    )


def batch_invariant_linear(
    x: Tensor,  # [B, K]
    weight: Tensor,  # [O, K]
    bias: Tensor | None = None,  # [O]
) -> Tensor:
    """x W^T + b, in which a row has the same bits whatever rows are beside it.

    For what comes behind the pooling, where an image is one row: the projections of a mean token
    (arXiv 2604.22841), an embedding head. Libraries choose another kernel, and another order of
    additions, for every number of rows; this one reads the weights once for all rows and adds in
    one order.

    Args:
        x: rows [B, K], float32, any strides.
        weight: [O, K], float32, bfloat16 or float16, any strides; fastest where the last is 1.
        bias: [O], any of these dtypes, or None for zeros.

    Returns:
        [B, O], float32.

    Raises:
        RuntimeError: a shape, dtype or device is not as above, K or O is 0, or gradients are asked
            for.
    """
    out: Tensor = torch.ops.fiqa_fast.batch_invariant_linear(x, weight, bias)
    return out


def attention_logits_mean(
    q: Tensor,  # [B, H, Nq, d]
    k: Tensor,  # [B, H, Nk, d]
    scale: float,
) -> AttentionLogitsMean:
    """Means of the pre-softmax attention logits, without forming them.

    The quality score of ATTN-FIQA (arXiv 2604.22841) is the mean of all H N^2 logits
    ``A_h[i, j] = scale * q_hi . k_hj``. They are bilinear, so with bars for means over tokens::

        head_scores_h = scale qbar_h . kbar_h             mean of A_h
        key_map_j     = (scale/H) sum_h k_hj . qbar_h     mean of column j over heads and queries
        query_map_i   = (scale/H) sum_h q_hi . kbar_h     mean of row i over heads and keys

    Args:
        q: queries [B, H, Nq, d], float32, bfloat16 or float16. Any strides, without a copy: views
            of a fused qkv projection are as fast as contiguous tensors while the last stride is 1.
        k: keys [B, H, Nk, d], the same dtype.
        scale: the factor of the logits, usually d ** -0.5.

    Returns:
        head_scores [B, H], key_map [B, Nk], query_map [B, Nq], q_mean [B, H, d], all float32.

    Raises:
        RuntimeError: a shape, dtype or device is not as above, H, N or d is 0, or gradients are
            asked for.
    """
    return AttentionLogitsMean(*torch.ops.fiqa_fast.attention_logits_mean(q, k, scale))


# Fake implementations: the checks of csrc/ops/<op>.h in the same words; shapes may be symbolic.


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


@torch.library.register_fake("fiqa_fast::mean_layer_norm")
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    _check_layer_norm("mean_layer_norm", x, weight, bias, eps)
    return x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)


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

    def text() -> str:
        return f"{op}: residual should have the shape of x, {_shape(x)}, got {_shape(residual)}"

    torch._check(residual.dim() == 3, text)
    for axis in range(3):
        torch._check(residual.shape[axis] == x.shape[axis], text)
    _check_device(op, "residual", residual, "x", x)
    _check_dtype(op, "residual", residual)
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


@torch.library.register_fake("fiqa_fast::attention_logits_mean")
def _(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op = "attention_logits_mean"
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
    B, H, Nq, d = q.shape
    Nk = k.shape[2]

    def empty(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=torch.float32)

    return empty(B, H), empty(B, Nk), empty(B, Nq), empty(B, H, d)


def _register_inference_only(op: str) -> None:
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"{op} is inference-only and has no backward: call it under torch.no_grad(), or use"
            f" fiqa_fast.reference.{op} to train"
        )

    torch.library.register_autograd(f"fiqa_fast::{op}", backward)


def _register_missing_cuda(op: str, reason: str) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{op}: got CUDA tensors, but its CUDA kernels are not loaded: {reason}")

    torch.library.impl(f"fiqa_fast::{op}", "CUDA")(refuse)


for _op in (
    "mean_layer_norm",
    "layer_norm_dot",
    "add_layer_norm",
    "batch_invariant_linear",
    "attention_logits_mean",
):
    _register_inference_only(_op)
    # Registered as the CUDA implementation, so that the ordinary path pays nothing for the message.
    if not cuda_status().loaded:
        _register_missing_cuda(_op, cuda_status().reason)
