# SPDX-License-Identifier: Apache-2.0
"""Typed wrappers of ``torch.ops.fiqa_fast.*``.

All operators are inference-only: they accept tensors that require grad, but a backward pass raises.
They accumulate in float32 and return contiguous float32 tensors, and an image's result is the same,
bit for bit, whatever the batch, the number of threads and the memory layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from fiqa_fast._fake import MAX_HEAD_DIM  # and registers the fake implementations
from fiqa_fast._load import cuda_status

__all__ = [
    "MAX_HEAD_DIM",
    "AddLayerNorm",
    "AttentionLogitsMean",
    "AttentionLogitsStats",
    "AttentionWithQuality",
    "LogitsValues",
    "MeanLayerNorm",
    "add_layer_norm",
    "attention_logits_mean",
    "attention_logits_stats",
    "attention_with_quality",
    "batch_invariant_linear",
    "layer_norm_dot",
    "mean_layer_norm",
    "mean_layer_norm_map",
]

# The bits of attention_logits_stats's `stats`.
_LOGITS_STATS = {"moments": 1, "centered_variance": 2, "softmax": 4, "median": 8}


class AttentionLogitsMean(NamedTuple):
    """Means of the attention logits; the attention's score is the mean of ``head_scores``."""

    head_scores: Tensor  # [B, H]
    key_map: Tensor  # [B, Nk]
    query_map: Tensor  # [B, Nq]
    q_mean: Tensor  # [B, H, d]


class LogitsValues(NamedTuple):
    """Values of one head's logits, each [B, H'], or of all logits of an image, each [B].

    They are columns of one tensor, so their strides are not those of a contiguous one.
    """

    mean: Tensor
    max: Tensor
    min: Tensor
    variance: Tensor  # over n
    unbiased_variance: Tensor  # over n - 1; NaN for one logit
    row_variance: Tensor  # over n within a row; mean of the rows, and of an image's heads
    centered_variance: Tensor | None  # of the doubly centred logits, over n; mean of the heads


class AttentionLogitsStats(NamedTuple):
    """Statistics of the attention logits; what was not asked for is None."""

    head: LogitsValues | None  # [B, H']
    image: LogitsValues | None  # [B]
    key_map: Tensor | None  # [B, Nk]
    query_map: Tensor | None  # [B, Nq]
    logsumexp: Tensor | None  # [B, H', Nq]
    entropy: Tensor | None  # [B, H', Nq]
    median: Tensor | None  # [B]


class AttentionWithQuality(NamedTuple):
    """An attention's output and the quality of what it attended to."""

    output: Tensor  # [B, H, Nq, e]
    key_map: Tensor  # [B, Nk]
    head_scores: Tensor  # [B, H]


class MeanLayerNorm(NamedTuple):
    """The mean normed token, and what every normed token gives in one direction."""

    mean: Tensor  # [B, D]
    map: Tensor  # [B, N]


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
    residual: Tensor | None = None,  # [B, N, D]
) -> Tensor:
    """The mean over tokens of LayerNorm(x + residual), in one pass over both.

    ::

        z_n = x_n + residual_n
        y_n = (z_n - mean(z_n)) / sqrt(var(z_n) + eps) * weight + bias
        out = (1/N) sum_n y_n

    Args:
        x: tokens [B, N, D], float32, bfloat16 or float16, any strides.
        weight: [D], any of these dtypes, or None for ones.
        bias: [D], any of these dtypes, or None for zeros.
        eps: added to the (biased) variance; finite, not negative.
        residual: [B, N, D], of x's dtype, or of any of these where x is float32; any strides; or
            None for zeros. The sum is float32 and goes to no memory; the result is that of the
            sum, bit for bit.

    Returns:
        [B, D], float32.

    Raises:
        RuntimeError: a shape, dtype, device or eps is not as above, N or D is 0, or gradients are
            asked for.
    """
    mean: Tensor = torch.ops.fiqa_fast.mean_layer_norm(x, weight, bias, eps, residual, None)[0]
    return mean


def mean_layer_norm_map(
    x: Tensor,  # [B, N, D]
    weight: Tensor | None,  # [D]
    bias: Tensor | None,  # [D]
    eps: float,
    u: Tensor,  # [B, D]
    residual: Tensor | None = None,  # [B, N, D]
) -> MeanLayerNorm:
    """:func:`mean_layer_norm`, and on its way the product of every normed token with u.

    Which makes a map of ATTN-FIQA (arXiv 2604.22841): with ``u = Wk^T q_mean``, what each token
    receives as a key, up to a constant. With y as in :func:`mean_layer_norm`::

        mean  = (1/N) sum_n y_n
        map_n = y_n . u

    Args:
        x, weight, bias, eps, residual: as in :func:`mean_layer_norm`.
        u: a direction for every image [B, D], float32, any strides: ``u.expand(B, D)`` is one for
            all.

    Returns:
        mean [B, D], map [B, N], both float32; the mean is that without a map, bit for bit.

    Raises:
        RuntimeError: a shape, dtype, device or eps is not as above, N or D is 0, or gradients are
            asked for.
    """
    return MeanLayerNorm(*torch.ops.fiqa_fast.mean_layer_norm(x, weight, bias, eps, residual, u))


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


def attention_logits_stats(
    q: Tensor,  # [B, H, Nq, d]
    k: Tensor,  # [B, H, Nk, d]
    scale: float,
    stats: Sequence[str] = ("moments",),
    heads: str = "all",
) -> AttentionLogitsStats:
    """Statistics of the pre-softmax attention logits that need every one, without storing them.

    ATTN-FIQA (arXiv 2604.22841) takes the mean of the logits ``A_h[i, j] = scale * q_hi . k_hj``
    and, in its ablations, their maximum, median and standard deviation. The variances of centred
    logits are fiqa_fast's own. Tiles of the logits are formed in float32, reduced and dropped::

        "moments"            mean, max and min; variance over n and over n - 1, of a head's Nq Nk
                             logits and of an image's H' Nq Nk;
                             row_variance = mean_i var_j A_h[i, j];
                             key_map_j, query_map_i: means of column j and row i over the heads
        "centered_variance"  the moments, and the variance of A_h[i, j] - mean_j A_h[i, j]
                             - mean_i A_h[i, j] + mean_ij A_h[i, j]
        "softmax"            logsumexp_hi = log sum_j exp A_h[i, j]
                             entropy_hi   = -sum_j p_j log p_j in nats, p = softmax_j A_h[i, j]
        "median"             the lower median (torch's) of the image's logits, exactly

    Costs: forming the logits, H Nq Nk d multiply-adds, dominates. "moments" and "softmax" form
    them once, "centered_variance" twice, "median" three times on a CPU, where the passes are
    shared, and eight times on a GPU. Beside the results, 1/64 of the logits' size is needed, for
    sums of columns. For means alone :func:`attention_logits_mean` needs no logits at all.

    Args:
        q: queries [B, H, Nq, d], float32, bfloat16 or float16, d <= 128, any strides.
        k: keys [B, H, Nk, d], the same dtype.
        scale: the factor of the logits, usually d ** -0.5.
        stats: names of the above, one or more.
        heads: "all", or "average" for the statistics of one matrix, (1/H) sum_h A_h; then H' is 1,
            otherwise it is H. One head is ``q[:, h : h + 1], k[:, h : h + 1]``.

    Returns:
        head, image, key_map, query_map, logsumexp, entropy and median, all float32; None where not
        asked for. NaN and infinite logits act as in torch, in their own image only: a NaN makes
        the image's values, maximum, minimum and median NaN; a row whose maximum is infinite has
        that as its logsumexp; a row with a NaN or infinite logit has NaN as its entropy. Sums are
        float32 on the way: logits beyond 1e36 may overflow to infinite means and variances, and so
        does the entropy, to NaN, where logits are further apart than float32's largest number.

    Raises:
        ValueError: stats or heads is not as above.
        RuntimeError: a shape, dtype or device is not as above, H, N or d is 0, or gradients are
            asked for.
    """
    if isinstance(stats, str) or not stats or not set(stats) <= _LOGITS_STATS.keys():
        names = ", ".join(_LOGITS_STATS)
        raise ValueError(f"stats should be a tuple of one or more of {names}, got {stats!r}")
    if heads not in ("all", "average"):
        raise ValueError(f'heads should be "all" or "average", got {heads!r}')
    bits = sum(bit for name, bit in _LOGITS_STATS.items() if name in stats)
    head, image, key_map, query_map, logsumexp, entropy, median = (
        torch.ops.fiqa_fast.attention_logits_stats(q, k, scale, bits, heads == "average")
    )
    moments = "moments" in stats or "centered_variance" in stats

    def values(table: Tensor) -> LogitsValues | None:
        if not moments:
            return None
        columns = LogitsValues(*table.unbind(-1))
        return columns if "centered_variance" in stats else columns._replace(centered_variance=None)

    return AttentionLogitsStats(
        head=values(head),
        image=values(image),
        key_map=key_map if moments else None,
        query_map=query_map if moments else None,
        logsumexp=logsumexp if "softmax" in stats else None,
        entropy=entropy if "softmax" in stats else None,
        median=median if "median" in stats else None,
    )


def attention_with_quality(
    q: Tensor,  # [B, H, Nq, d]
    k: Tensor,  # [B, H, Nk, d]
    v: Tensor,  # [B, H, Nk, e]
    scale: float,
) -> AttentionWithQuality:
    """Attention and, beside its output, where its quality comes from (ATTN-FIQA, arXiv 2604.22841).

    ::

        output      = softmax(scale q k^T) v                    as scaled_dot_product_attention
        key_map     = mean over heads and queries of scale q k^T
        head_scores = mean over queries and keys of scale q k^T

    The image's score is the mean of ``head_scores``. Nothing but q and k has to be read for either
    mean (:func:`attention_logits_mean`), so the output is left to torch's fused attention, which
    every device has a tuned version of: a kernel that did both would save one reading of q and k,
    which have just been written and are in cache, and would have to keep up with that version in
    the N^2 part. ``benchmarks/bench_attention_with_quality.py`` has the alternatives side by side.

    Args:
        q: queries [B, H, Nq, d], float32, bfloat16 or float16, any strides.
        k: keys [B, H, Nk, d], the same dtype.
        v: values [B, H, Nk, e], the same dtype.
        scale: the factor of the logits, usually d ** -0.5.

    Returns:
        output [B, H, Nq, e] in the dtype of q; key_map [B, Nk] and head_scores [B, H], float32.

    Raises:
        RuntimeError: a shape, dtype or device is not as above, H, N or d is 0, or gradients of
            key_map or head_scores are asked for; those of output are torch's.
    """
    means = attention_logits_mean(q, k, scale)
    if v.shape[:-1] != k.shape[:-1] or v.dtype != k.dtype or v.device != k.device:
        raise RuntimeError(
            "attention_with_quality: v should be [B, H, Nk, e] with B, H, Nk, dtype and device of"
            f" k, {list(k.shape)} {k.dtype} {k.device}, got {list(v.shape)} {v.dtype} {v.device}"
        )
    output = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return AttentionWithQuality(output, means.key_map, means.head_scores)


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
    "attention_logits_stats",
):
    _register_inference_only(_op)
    # Registered as the CUDA implementation, so that the ordinary path pays nothing for the message.
    if not cuda_status().loaded:
        _register_missing_cuda(_op, cuda_status().reason)
