# SPDX-License-Identifier: Apache-2.0
"""Launches to prove free of races: the kernels' parameters, as the launchers fill them, in the form
that SentryWard reads (its docs/input-json.md). A proof holds for the sizes of its launch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

THREADS = 256
WARPS = THREADS // 32

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_FLOAT, _INT32 = ctypes.c_float, ctypes.c_int32
_TYPES = {_INT64: "s64", _INT32: "s32", _FLOAT: "f32"}
# Any address but null: pointers are told apart by their names.
SOME = 1 << 20
DTYPES = ("float32", "bfloat16", "float16")  # in the order of csrc/kernels/dtype.h


class Channelwise(ctypes.Structure):
    _fields_ = (("data", _POINTER), ("dtype", _INT32), ("stride", _INT64))


class LayerNormInput(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER),
        ("dtype", _INT32),
        *((name, _INT64) for name in ("images", "tokens", "channels")),
        *((name, _INT64) for name in ("image_stride", "token_stride", "channel_stride")),
        *(("weight", Channelwise), ("bias", Channelwise), ("eps", _FLOAT)),
    )


class MeanLayerNormArgs(ctypes.Structure):
    _fields_ = (
        *(("input", LayerNormInput), ("residual", _POINTER), ("residual_dtype", _INT32)),
        *((f"residual_{name}_stride", _INT64) for name in ("image", "token", "channel")),
        *(("u", _POINTER), ("u_image_stride", _INT64), ("u_channel_stride", _INT64)),
        *((n, _POINTER) for n in ("partial", "mean", "folded", "folded_sum", "constant", "map")),
    )


class LayerNormDotArgs(ctypes.Structure):
    _fields_ = (
        *(("input", LayerNormInput), ("w", _POINTER)),
        *(("w_token_stride", _INT64), ("w_channel_stride", _INT64)),
        *((n, _POINTER) for n in ("folded", "folded_sum", "constant", "token_values", "out")),
    )


class AttentionSide(ctypes.Structure):
    _fields_ = (
        *(("data", _POINTER), ("tokens", _INT64)),
        *((f"{name}_stride", _INT64) for name in ("image", "head", "token", "channel")),
        *(("mean", _POINTER), ("map", _POINTER)),
    )


class AttentionLogitsMeanArgs(ctypes.Structure):
    _fields_ = (
        *(("dtype", _INT32), ("images", _INT64), ("heads", _INT64), ("head_dim", _INT64)),
        *(("scale", _FLOAT), ("q", AttentionSide), ("k", AttentionSide)),
        ("head_scores", _POINTER),
    )


class AttentionTokens(ctypes.Structure):
    _fields_ = (
        *(("data", _POINTER), ("tokens", _INT64)),
        *((f"{name}_stride", _INT64) for name in ("image", "head", "token", "channel")),
    )


class LogitsInput(ctypes.Structure):
    _fields_ = (
        *(("dtype", _INT32), ("images", _INT64), ("heads", _INT64), ("head_dim", _INT64)),
        *(("matrices", _INT64), ("scale", _FLOAT), ("q", AttentionTokens), ("k", AttentionTokens)),
    )


class AttentionLogitsStatsArgs(ctypes.Structure):
    _fields_ = (
        *(("input", LogitsInput), ("stats", _INT64)),
        *((n, _POINTER) for n in ("head_values", "image_values", "key_map", "query_map")),
        *((n, _POINTER) for n in ("logsumexp", "entropy", "median", "row_moments")),
        *((n, _POINTER) for n in ("column_sums", "column_means", "centred_squares", "counts")),
        ("searches", _POINTER),
    )


class BatchInvariantLinearArgs(ctypes.Structure):
    _fields_ = (
        *(("x", _POINTER), ("x_row_stride", _INT64), ("x_stride", _INT64)),
        *(("weight", _POINTER), ("dtype", _INT32)),
        *(("weight_row_stride", _INT64), ("weight_stride", _INT64)),
        *(("bias", Channelwise), ("rows", _INT64), ("inputs", _INT64), ("outputs", _INT64)),
        *(("partial", _POINTER), ("out", _POINTER)),
    )


class AddLayerNormArgs(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER),
        *((f"x_{name}_stride", _INT64) for name in ("image", "token", "channel")),
        *(("residual", _POINTER), ("residual_dtype", _INT32)),
        *((f"residual_{name}_stride", _INT64) for name in ("image", "token", "channel")),
        *(("weight", Channelwise), ("bias", Channelwise)),
        *((name, _INT64) for name in ("images", "tokens", "channels")),
        *(("eps", _FLOAT), ("sum", _POINTER), ("normed", _POINTER), ("normed_dtype", _INT32)),
    )


@dataclass(frozen=True)
class Launch:
    operator: str
    kernel: str  # as in compiled.kernel_name()
    shape: tuple[int, ...]
    blocks: int
    arguments: ctypes.Structure
    more: tuple[int, ...] = ()  # parameters after the struct
    more_type: str = "u64"
    threads: int = THREADS

    def __str__(self) -> str:
        return f"{self.operator}.{self.kernel}-{'x'.join(map(str, self.shape))}"

    def input(self, entry: str) -> dict[str, object]:
        """SentryWard's input."""
        declarations, arguments = [], []
        for offset, kind, name, value in _fields(self.arguments):
            where = {"parameter": 0, "offset": offset}
            if kind is not _POINTER:
                arguments.append({**where, "type": _TYPES[kind], "value": value})
            elif value is None:
                arguments.append({**where, "type": "pointer", "value": None})
            else:
                pointer = {"type": "pointer", "space": "global", "object": name}
                declarations.append({**where, **pointer})
        for i, value in enumerate(self.more):
            arguments.append({"parameter": i + 1, "type": self.more_type, "value": value})
        return {
            "schema": "spverify.kernel-input/v1",
            "entry": entry,
            "launch": {"grid_dim": [self.blocks, 1, 1], "block_dim": [self.threads, 1, 1]},
            "declarations": declarations,
            "arguments": arguments,
        }


def _fields(
    struct: ctypes.Structure, base: int = 0, path: str = ""
) -> Iterator[tuple[int, type, str, object]]:
    """Offset, type, name and value of everything in a struct."""
    for name, kind in struct._fields_:
        value, offset = getattr(struct, name), base + getattr(type(struct), name).offset
        if isinstance(value, ctypes.Structure):
            yield from _fields(value, offset, f"{path}{name}.")
        else:
            yield offset, kind, path + name, value


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)


def _variants(kernel: str, dtype: str, channels: int) -> list[str]:
    """Both variants of a kernel, or the scalar one where groups of 16 bytes are not whole."""
    group = 4 if dtype == "float32" else 8
    return [f"{kernel}<{dtype}, {v}>" for v in ("scalar", "vector")[: 1 + (channels % group == 0)]]


def _parameter(dtype: str) -> Channelwise:
    return Channelwise(SOME, DTYPES.index(dtype), 1)


def _layer_norm(B: int, N: int, D: int, dtype: str) -> LayerNormInput:
    parameters = (_parameter(dtype), _parameter(dtype))
    return LayerNormInput(SOME, DTYPES.index(dtype), B, N, D, N * D, D, 1, *parameters, 1e-5)


def _mean_layer_norm(
    B: int, N: int, D: int, dtype: str = "float32", *, residual: str = "", u: bool = False
) -> list[Launch]:
    """With a residual of a dtype, and with a map, if any."""
    types = f"{dtype} + {residual}" if residual else dtype
    code = DTYPES.index(residual or dtype)
    args = MeanLayerNormArgs(
        *(_layer_norm(B, N, D, dtype), SOME if residual else None, code, N * D, D, 1),
        *(SOME if u else None, D, 1, SOME, SOME, *[SOME if u else None] * 4),
    )
    chunks = _divide_up(N, 32)
    group = 8 if "float16" in types else 4
    variants = ("scalar", "vector")[: 1 + (D % group == 0)]
    named = [(f"partial_sums<{types}, {variant}>", B * chunks) for variant in variants]
    named.append(("combine", _divide_up(B * D, THREADS)))
    launches = [
        Launch("mean_layer_norm", kernel, (B, N, D), blocks, args, (chunks,))
        for kernel, blocks in named
    ]
    if u:
        blocks = _divide_up(B, WARPS)
        launches.append(Launch("mean_layer_norm", "fold", (B, N, D), blocks, args))
    return launches


def _layer_norm_dot(B: int, N: int, D: int, dtype: str = "float32") -> list[Launch]:
    args = LayerNormDotArgs(_layer_norm(B, N, D, dtype), SOME, D, 1, *[SOME] * 5)
    values = [(kernel, B * N) for kernel in _variants("token_values", dtype, D)]
    named = [("fold", N), *values, ("combine", B)]
    return [
        Launch("layer_norm_dot", kernel, (B, N, D), _divide_up(rows, WARPS), args)
        for kernel, rows in named
    ]


def _attention_logits_mean(
    B: int, H: int, Nq: int, Nk: int, d: int, dtype: str = "float32"
) -> list[Launch]:
    def side(N: int) -> AttentionSide:
        return AttentionSide(SOME, N, H * N * d, N * d, d, 1, SOME, SOME)

    sides = (side(Nq), side(Nk))
    args = AttentionLogitsMeanArgs(DTYPES.index(dtype), B, H, d, d**-0.5, *sides, SOME)
    tokens = _divide_up(B * (Nq + Nk), WARPS)
    named = [(kernel, B * H) for kernel in _variants("pool_heads", dtype, d)]
    named += [(kernel, tokens) for kernel in _variants("maps", dtype, d)]
    return [
        Launch("attention_logits_mean", kernel, (B, H, Nq, Nk, d), blocks, args)
        for kernel, blocks in named
    ]


def _attention_logits_stats(
    B: int,
    H: int,
    Nq: int,
    Nk: int,
    d: int,
    matrices: int,
    dtype: str = "float32",
    tiles: tuple[str, ...] = ("moments", "deviations", "count"),
) -> list[Launch]:
    def side(N: int) -> AttentionTokens:
        return AttentionTokens(SOME, N, H * N * d, N * d, d, 1)

    given = LogitsInput(DTYPES.index(dtype), B, H, d, matrices, d**-0.5, side(Nq), side(Nk))
    args = AttentionLogitsStatsArgs(given, 15, *[SOME] * 13)

    def launch(kernel: str, blocks: int, more: tuple[int, ...] = (), threads: int = 128) -> Launch:
        shape, name = (B, H, Nq, Nk, d, matrices), "attention_logits_stats"
        return Launch(name, kernel, shape, blocks, args, more, "u32", threads)

    blocks, rows = B * matrices * _divide_up(Nq, 64), B * matrices
    launches = [
        launch(kernel, blocks, (1,) if name == "count" else ())
        for name in tiles
        for kernel in _variants(name, dtype, d)
    ]
    if dtype != "float32":  # the others are the same for all
        return launches
    launches += [
        launch("maps", _divide_up(B * (Nq + Nk), THREADS), threads=THREADS),
        launch("heads", rows, threads=THREADS),
        launch("centred", rows, threads=THREADS),
        launch("images", _divide_up(B, THREADS), threads=THREADS),
        launch("select", B, (1,), THREADS),
    ]
    return launches


def _batch_invariant_linear(B: int, K: int, outputs: int, dtype: str = "float32") -> list[Launch]:
    weight = (SOME, DTYPES.index(dtype), K, 1)
    args = BatchInvariantLinearArgs(
        SOME, K, 1, *weight, _parameter(dtype), B, K, outputs, SOME, SOME
    )
    items = _divide_up(B, 32) * _divide_up(outputs, 32) * _divide_up(K, 2048)
    named = [(kernel, items) for kernel in _variants("products", dtype, K)]
    named.append(("combine", _divide_up(B * outputs, THREADS)))
    return [
        Launch("batch_invariant_linear", kernel, (B, K, outputs), blocks, args)
        for kernel, blocks in named
    ]


def _add_layer_norm(B: int, N: int, D: int, dtype: str = "float32") -> list[Launch]:
    strides, code = (N * D, D, 1), DTYPES.index(dtype)
    parameters = (_parameter(dtype), _parameter(dtype))
    args = AddLayerNormArgs(
        *(SOME, *strides, SOME, code, *strides, *parameters),
        *(B, N, D, 1e-5, SOME, SOME, code),
    )
    return [
        Launch("add_layer_norm", kernel, (B, N, D), _divide_up(B * N, WARPS), args)
        for kernel in _variants("add_and_norm", dtype, D)
    ]


# Small, for a proof's cost grows with all that the threads do; but with tails and several blocks.
LAUNCHES = [
    *_add_layer_norm(1, 9, 16),
    *_add_layer_norm(1, 3, 40),
    *_add_layer_norm(3, 2, 15),
    *_add_layer_norm(1, 1, 132),
    *_mean_layer_norm(1, 33, 8),
    *_mean_layer_norm(2, 5, 15, u=True),
    *_mean_layer_norm(1, 3, 40),
    *_mean_layer_norm(1, 2, 4, u=True),
    *_mean_layer_norm(1, 33, 4, residual="float32", u=True),
    *_mean_layer_norm(2, 3, 15, residual="float32"),
    *_layer_norm_dot(1, 9, 16),
    *_layer_norm_dot(1, 3, 40),
    *_layer_norm_dot(3, 2, 15),
    *_layer_norm_dot(1, 1, 132),
    *_attention_logits_mean(1, 2, 5, 4, 8),
    *_attention_logits_mean(2, 1, 3, 9, 15),
    *_attention_logits_mean(1, 1, 33, 2, 24),
    *_attention_logits_mean(1, 1, 2, 1, 4),
    *_attention_logits_stats(1, 1, 2, 3, 4, 1),
    *_attention_logits_stats(2, 1, 1, 2, 5, 1),
    *_attention_logits_stats(1, 1, 65, 1, 3, 1),
    # Two tiles of two slabs, and one of an average of heads: the pipeline, which all three share.
    *_attention_logits_stats(1, 1, 1, 65, 36, 1, tiles=("deviations",)),
    *_attention_logits_stats(1, 2, 1, 3, 4, 1, tiles=("deviations",)),
    *_batch_invariant_linear(3, 68, 5),
    *_batch_invariant_linear(33, 15, 2),
    *_batch_invariant_linear(2, 64, 34),
    # The same kernels over groups of eight, with parameters of the same dtype.
    *(
        launch
        for dtype in DTYPES[1:]
        for launch in (
            *_add_layer_norm(1, 3, 24, dtype),
            *_mean_layer_norm(1, 3, 24, dtype),
            *_mean_layer_norm(1, 3, 24, dtype, residual=dtype, u=True),
            *_mean_layer_norm(1, 3, 24, residual=dtype, u=True),
            *_layer_norm_dot(1, 3, 24, dtype),
            *_attention_logits_mean(1, 1, 5, 4, 24, dtype),
            *_attention_logits_stats(1, 1, 2, 3, 8, 1, dtype),
            *_batch_invariant_linear(2, 24, 3, dtype),
        )
    ),
]
