# SPDX-License-Identifier: Apache-2.0
"""The seeded bugs. Each changes what a kernel does; its text occurs exactly once in the file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    file: str  # in csrc/kernels/cuda
    stands_for: str
    text: str
    replacement: str


ADD = "add_layer_norm.cu"
MEAN = "mean_layer_norm.cu"
DOT = "layer_norm_dot.cu"
LOGITS = "attention_logits_mean.cu"
LINEAR = "batch_invariant_linear.cu"
STATISTICS = "layer_norm.cuh"
VECTORS = "vec.cuh"

BARRIER = "__syncthreads();"

MUTATIONS = [
    Mutation(
        ADD,
        "wrong stride: the residual is read as x is laid out",
        "token * a.residual_token_stride;",
        "token * a.x_token_stride;",
    ),
    Mutation(
        ADD,
        "unguarded store behind the last channel of the sum",
        "if (first + i < a.channels) sum[first + i] =",
        "sum[first + i] =",
    ),
    Mutation(
        ADD,
        "skipped tokens where the grid is small",
        "item += static_cast<int64_t>(gridDim.x) * kWarps)",
        "item += static_cast<int64_t>(gridDim.x) * kWarps * 2)",
    ),
    Mutation(
        ADD, "weight and bias exchanged", "fmaf(value, weight, bias)", "fmaf(value, bias, weight)"
    ),
    Mutation(
        ADD,
        "wrong half of a word of the residual",
        "words[i / 2] >> (i % 2 * 16)",
        "words[i / 2] >> (16 - i % 2 * 16)",
    ),
    Mutation(
        ADD,
        "missing scale: the norm is only centred",
        "- row.rest) * row.rstd",
        "- row.rest)",
    ),
    Mutation(
        MEAN,
        "missing barrier: statistics are read before all warps have written theirs",
        f"    {BARRIER}\n\n    for (int64_t base",
        "    for (int64_t base",
    ),
    Mutation(
        MEAN,
        "missing barrier: slices are added before they are there",
        f"slice_sums[i][threadIdx.x] = sums[i];\n      {BARRIER}",
        "slice_sums[i][threadIdx.x] = sums[i];",
    ),
    Mutation(
        MEAN,
        "off by one: the last chunk lacks a token",
        "static_cast<int>(a.tokens - first) : kChunk",
        "static_cast<int>(a.tokens - first) - 1 : kChunk",
    ),
    Mutation(
        MEAN,
        "skipped row: a chunk's last token is not added",
        "for (int r = slice; r < count; r += slices)",
        "for (int r = slice; r < count - 1; r += slices)",
    ),
    Mutation(
        MEAN,
        "dropped slice",
        "for (int s = 1; s < slices; ++s)",
        "for (int s = 1; s < slices - 1; ++s)",
    ),
    Mutation(
        MEAN,
        "dropped chunk",
        "for (int64_t chunk = 0; chunk < chunks; ++chunk)",
        "for (int64_t chunk = 0; chunk < chunks - (chunks > 1); ++chunk)",
    ),
    Mutation(
        MEAN,
        "the rounding of the mean is not made up for",
        "values[i] - row_mean[r] - row_rest[r]",
        "values[i] - row_mean[r]",
    ),
    Mutation(
        MEAN,
        "unguarded store: one output too many",
        "i < size;",
        "i <= size;",
    ),
    Mutation(
        MEAN,
        "wrong stride of the partial sums",
        "a.partial + item * padded(a.channels)",
        "a.partial + item * a.channels",
    ),
    Mutation(
        MEAN,
        "the loop over the grid skips items",
        "item < a.images * chunks; item += gridDim.x)",
        "item < a.images * chunks; item += gridDim.x + 1)",
    ),
    Mutation(
        MEAN,
        "wrong thread's slice",
        "slice_sums[i][threadIdx.x + s * span]",
        "slice_sums[i][threadIdx.x + s]",
    ),
    Mutation(
        STATISTICS,
        "wrong fill: missing elements count as zeros in the variance",
        "in.channels, mean, values);",
        "in.channels, 0.0f, values);",
    ),
    Mutation(
        STATISTICS,
        "the rounding of the mean is not taken from the variance",
        "warp_sum(squares) / d - rest * rest",
        "warp_sum(squares) / d",
    ),
    Mutation(
        STATISTICS,
        "eps outside of the root",
        "sqrtf(variance + in.eps)",
        "(sqrtf(variance) + in.eps)",
    ),
    Mutation(
        STATISTICS,
        "negative variances become NaN",
        "if (variance < 0.0f) variance = 0.0f;",
        "if (variance < 0.0f) variance = -1.0f;",
    ),
    Mutation(
        VECTORS,
        "the warp's sum lacks a step",
        "offset > 0; offset /= 2",
        "offset > 1; offset /= 2",
    ),
    Mutation(
        VECTORS,
        "wrong lane: only the first has the sum",
        "__shfl_xor_sync(0xffffffffu, value, offset)",
        "__shfl_down_sync(0xffffffffu, value, offset)",
    ),
    Mutation(
        VECTORS,
        "a shuffle that names half of the lanes",
        "__shfl_xor_sync(0xffffffffu, value, offset)",
        "__shfl_xor_sync(0x0000ffffu, value, offset)",
    ),
    Mutation(
        VECTORS,
        "off by one: an element past the tail",
        "first + i < channels ?",
        "first + i <= channels ?",
    ),
    Mutation(
        VECTORS,
        "the halves of a word exchanged",
        "out[2 * i] = to_float(T{static_cast<uint16_t>(words[i])});",
        "out[2 * i] = to_float(T{static_cast<uint16_t>(words[(i + 1) % 4])});",
    ),
    Mutation(
        VECTORS,
        "bfloat16 cut off instead of rounded",
        "rounded = bits + 0x7fffu + ((bits >> 16) & 1u)",
        "rounded = bits",
    ),
    Mutation(
        VECTORS,
        "wide loads of rows that are not aligned",
        "aligned = aligned && strides[i] % group == 0",
        "aligned = aligned && strides[i] % 1 == 0",
    ),
    Mutation(
        VECTORS,
        "wide loads of data that is not aligned",
        "reinterpret_cast<uintptr_t>(data) % 16 == 0 && channel_stride",
        "reinterpret_cast<uintptr_t>(data) % 1 == 0 && channel_stride",
    ),
    Mutation(
        VECTORS,
        "a parameter's stride ignored",
        "const int64_t at = index * parameter.stride;",
        "const int64_t at = index;",
    ),
    Mutation(
        DOT,
        "padding left unwritten",
        "for (int64_t c = lane; c < padded; c += kWarp)",
        "for (int64_t c = lane; c < a.channels; c += kWarp)",
    ),
    Mutation(
        DOT,
        "wrong stride of w",
        "a.w[n * a.w_token_stride +",
        "a.w[n * a.channels +",
    ),
    Mutation(
        DOT,
        "the rounding of the mean is not made up for",
        "warp_sum(dot) - row.rest * a.folded_sum[n]",
        "warp_sum(dot)",
    ),
    Mutation(
        DOT,
        "wrong order: the bias is folded after the weight",
        "if (a.bias.data) constant = fmaf(element(a.bias, c), value, constant);\n"
        "        if (a.weight.data) value *= element(a.weight, c);",
        "if (a.weight.data) value *= element(a.weight, c);\n"
        "        if (a.bias.data) constant = fmaf(element(a.bias, c), value, constant);",
    ),
    Mutation(
        DOT,
        "skipped tokens in the last sum",
        "for (int64_t n = lane; n < a.tokens; n += kWarp) total",
        "for (int64_t n = lane; n < a.tokens; n += kWarp + 1) total",
    ),
    Mutation(
        DOT,
        "wrong warp: all of a block take the same row",
        "static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;",
        "static_cast<int64_t>(blockIdx.x) * kWarps;",
    ),
    Mutation(
        DOT,
        "unguarded row: one too many",
        "image < a.images; image",
        "image <= a.images; image",
    ),
    Mutation(
        LOGITS,
        "dropped head",
        "if (head >= a.heads) break;",
        "if (head >= a.heads - (a.heads > 1)) break;",
    ),
    Mutation(
        LOGITS,
        "wrong scale: a sum over heads",
        "a.scale / static_cast<float>(a.heads)",
        "a.scale",
    ),
    Mutation(
        LOGITS,
        "wrong side's mean",
        "(is_q ? a.k : a.q).mean",
        "(is_q ? a.q : a.k).mean",
    ),
    Mutation(
        LOGITS,
        "missing barrier: slices are added before they are there",
        f"slice_sums[i][threadIdx.x] = sums[i];\n    {BARRIER}",
        "slice_sums[i][threadIdx.x] = sums[i];",
    ),
    Mutation(
        LOGITS,
        "missing barrier: the mean is used before it is there",
        f"{BARRIER}  // mean is complete",
        "// mean is complete",
    ),
    Mutation(
        LOGITS,
        "off by one: a query too many",
        "item % per_image < a.q.tokens;",
        "item % per_image <= a.q.tokens;",
    ),
    Mutation(
        LOGITS,
        "wrong stride: the queries' for the keys too",
        "token * side.token_stride;",
        "token * a.q.token_stride;",
    ),
    Mutation(
        LOGITS,
        "unguarded store: whole groups of the mean",
        "if (g * kWidth + i < head_dim) mean[g * kWidth + i] = total / n;",
        "mean[g * kWidth + i] = total / n;",
    ),
    Mutation(
        LOGITS,
        "the head's score from half a warp",
        "if (threadIdx.x < kWarp) {\n      float dot",
        "if (threadIdx.x < kWarp / 2) {\n      float dot",
    ),
    Mutation(
        LINEAR,
        "missing barrier: products before the tiles are there",
        f"k, end);\n      {BARRIER}",
        "k, end);",
    ),
    Mutation(
        LINEAR,
        "missing barrier: the next tiles overwrite what is still read",
        f"      {BARRIER}\n    }}\n#pragma",
        "    }\n#pragma",
    ),
    Mutation(
        LINEAR,
        "unguarded load: a row too many",
        "first_row + row < rows &&",
        "first_row + row <= rows &&",
    ),
    Mutation(
        LINEAR,
        "unguarded tail: groups beyond the last input",
        "first_row + row < rows && k + group * kWidth < end",
        "first_row + row < rows",
    ),
    Mutation(
        LINEAR,
        "unguarded store: outputs beyond the last",
        "if (row < a.rows && output < a.outputs)",
        "if (row < a.rows)",
    ),
    Mutation(
        LINEAR,
        "dropped chunk",
        "for (int64_t chunk = 1; chunk < a.chunks(); ++chunk)",
        "for (int64_t chunk = 2; chunk < a.chunks(); ++chunk)",
    ),
    Mutation(
        LINEAR,
        "wrong bias: the row's",
        "element(a.bias, i % a.outputs)",
        "element(a.bias, i / a.outputs % a.outputs)",
    ),
    Mutation(
        LINEAR,
        "wrong row of the tile",
        "x_tile[line + 16][i]",
        "x_tile[line + 15][i]",
    ),
    Mutation(
        LINEAR,
        "the loop over the grid skips items",
        "item += gridDim.x) {",
        "item += 2 * gridDim.x) {",
    ),
    Mutation(
        LINEAR,
        "wide loads where only x is aligned",
        " &&\n      rows_are_aligned(a.weight, sizeof(T), a.inputs, a.weight_stride, "
        "&a.weight_row_stride, 1);",
        ";",
    ),
]
