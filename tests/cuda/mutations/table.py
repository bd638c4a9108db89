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
STATS = "attention_logits_stats.cu"
TILE = "logits_tile.cuh"
MEDIAN = "logits_median.cuh"
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
        "static_cast<int>(a.tokens - first) : kTokens",
        "static_cast<int>(a.tokens - first) - 1 : kTokens",
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
        "a.partial + item * MeanLayerNormArgs::padded(a.channels)",
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
        MEAN,
        "wrong stride: the residual is read as x is laid out",
        "residual + token * a.residual_token_stride",
        "residual + token * a.token_stride",
    ),
    Mutation(
        MEAN,
        "wrong image: the first one's residual for all",
        "residual += image * a.residual_image_stride +",
        "residual +=",
    ),
    Mutation(
        MEAN,
        "wrong fill: missing elements of the residual count as the sum's mean",
        "a.residual_channel_stride, a.channels, 0.0f, more);",
        "a.residual_channel_stride, a.channels, fill, more);",
    ),
    Mutation(
        MEAN,
        "wide loads where only one of the two is aligned",
        "aligned = aligned && rows_are_aligned(",
        "aligned = aligned || rows_are_aligned(",
    ),
    Mutation(
        MEAN,
        "wrong image: the first one's u for all",
        "a.u + image * a.u_image_stride,",
        "a.u,",
    ),
    Mutation(
        MEAN,
        "wrong stride of u",
        "a.u_channel_stride, a, padded",
        "1, a, padded",
    ),
    Mutation(
        MEAN,
        "the map lacks the correction for the rounding of the mean",
        "warp_sum(dot) - row.rest * a.folded_sum[image]",
        "warp_sum(dot)",
    ),
    Mutation(
        MEAN,
        "wrong token: every chunk writes the first one's map",
        "a.map[image * a.tokens + first + r]",
        "a.map[image * a.tokens + r]",
    ),
    Mutation(
        MEAN,
        "unguarded store: the map of tokens beyond the last",
        "for (int r = warp; r < count; r += kWarps)",
        "for (int r = warp; r < kTokens; r += kWarps)",
    ),
    Mutation(
        STATISTICS,
        "wrong fill: missing elements count as zeros in the variance",
        "load(g, mean, values);",
        "load(g, 0.0f, values);",
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
        "sqrtf(variance + eps)",
        "(sqrtf(variance) + eps)",
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
        "out[2 * i] = to_float(T{static_cast<uint16_t>(words[(i + 1) % kWords])});",
    ),
    Mutation(
        VECTORS,
        "four narrow elements are taken for eight",
        "reinterpret_cast<const uint2*>(row + first)",
        "reinterpret_cast<const uint2*>(row + group * kGroup<T>)",
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
        STATISTICS,
        "padding left unwritten",
        "for (int64_t c = lane; c < padded; c += kWarp)",
        "for (int64_t c = lane; c < in.channels; c += kWarp)",
    ),
    Mutation(
        DOT,
        "wrong stride of w",
        "a.w + n * a.w_token_stride,",
        "a.w + n * a.channels,",
    ),
    Mutation(
        DOT,
        "the rounding of the mean is not made up for",
        "warp_sum(dot) - row.rest * a.folded_sum[n]",
        "warp_sum(dot)",
    ),
    Mutation(
        STATISTICS,
        "wrong order: the bias is folded after the weight",
        "if (in.bias.data) dot = fmaf(element(in.bias, c), value, dot);\n"
        "      if (in.weight.data) value *= element(in.weight, c);",
        "if (in.weight.data) value *= element(in.weight, c);\n"
        "      if (in.bias.data) dot = fmaf(element(in.bias, c), value, dot);",
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
    Mutation(
        TILE,
        "missing wait: the tile is multiplied while it still comes",
        "      cp_async_wait<1>();\n",
        "",
    ),
    Mutation(TILE, "missing wait: one group too many may be pending", "wait<1>", "wait<2>"),
    Mutation(
        TILE,
        "missing barrier: other threads' copies have not landed",
        f"      cp_async_wait<1>();\n      {BARRIER}\n",
        "      cp_async_wait<1>();\n",
    ),
    Mutation(
        TILE,
        "missing barrier: slabs are overwritten while they are read",
        f"      {BARRIER}  // before the slabs just read are overwritten\n",
        "",
    ),
    Mutation(TILE, "missing commit: nothing is waited for", "cp_async_commit();  // if", "// if"),
    Mutation(
        TILE,
        "wrong buffer: the slab ahead lands on the one that is read",
        "begin(tile, slab + 1, 1 - place);",
        "begin(tile, slab + 1, place);",
    ),
    Mutation(TILE, "wrong swizzle", "rows[row][group ^ (row & 7)]", "rows[row][(group ^ row) & 3]"),
    Mutation(
        TILE,
        "off by one: a token past the last",
        "first + row < side.tokens && c < head_dim;",
        "first + row <= side.tokens && c < head_dim;",
    ),
    Mutation(
        TILE,
        "channels past the head's last",
        "first + row < side.tokens && c < head_dim;",
        "first + row < side.tokens;",
    ),
    Mutation(
        TILE,
        "wrong stride: keys are read as queries lie",
        "k + head * in.k.head_stride, in.k,",
        "k + head * in.q.head_stride, in.k,",
    ),
    Mutation(
        TILE, "wrong lanes name the rows of a", "warp * 16 + lane % 16,", "warp * 16 + lane / 2,"
    ),
    Mutation(
        TILE,
        "wrong lanes name the rows of b",
        "lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2",
        "lane / 8 % 2 * 8 + lane % 8, 2 * step + lane / 16",
    ),
    Mutation(
        TILE,
        "dropped step: the channels' tail",
        "for (int step = 0; 16 * step < channels; ++step)",
        "for (int step = 0; 16 * step + 15 < channels; ++step)",
    ),
    Mutation(
        TILE,
        "dropped channel of four",
        "sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);",
        "",
    ),
    Mutation(
        TILE,
        "dropped head of the average",
        "const int depth = joined * per_head;",
        "const int depth = (joined - (joined > 1)) * per_head;",
    ),
    Mutation(
        TILE,
        "wrong scale: applied to half",
        "logits[n][i] *= in.scale;",
        "logits[n][i] *= i < 2 ? in.scale : 1.0f;",
    ),
    Mutation(
        TILE,
        "sums of a tile go on in the next",
        "  for (int tile = 0; tile < tiles; ++tile) {\n    Logits logits = {};",
        "  Logits logits = {};\n  for (int tile = 0; tile < tiles; ++tile) {",
    ),
    Mutation(
        TILE,
        "off by one: a key past the last counts",
        "key_of(n, j) < keys",
        "key_of(n, j) <= keys",
    ),
    Mutation(
        MEDIAN,
        "queries past the last are counted for the median",
        "valid.query(i / 2) && valid.key(n, i % 2);",
        "valid.key(n, i % 2);",
    ),
    Mutation(
        STATS,
        "wrong lane: the columns' halves are stored where the others belong",
        "if (upper) first += half;",
        "if (!upper) first += half;",
    ),
    Mutation(
        STATS,
        "dropped warp of the columns",
        "for (int warp = 1; warp < kTileWarps; ++warp) sum += columns",
        "for (int warp = 1; warp < kTileWarps - 1; ++warp) sum += columns",
    ),
    Mutation(
        STATS,
        "the exponentials keep their old maximum",
        "m.exp_sum *= factor;",
        "",
    ),
    Mutation(
        STATS,
        "the distance of two means does not count in their variance",
        "fmaf(delta * delta, a.count * share, squares)",
        "squares",
    ),
    Mutation(
        STATS,
        "the rounding of the mean is not made up for",
        "not_negative(fmaf(-count * rest, rest, squares))",
        "squares",
    ),
    Mutation(
        STATS,
        "the maximum of half a row's lanes",
        "for (int bits = 1; bits < 4; bits *= 2) {\n        Moments other",
        "for (int bits = 1; bits < 2; bits *= 2) {\n        Moments other",
    ),
    Mutation(
        STATS,
        "unguarded store: rows past the last query",
        "if (threadIdx.x % 4 == 0 && query < a.q.tokens) store(",
        "if (threadIdx.x % 4 == 0) store(",
    ),
    Mutation(
        STATS,
        "skipped tiles where the grid is small",
        "i < Item::count(a); i += gridDim.x) {\n    const Item item(a, i);\n    MomentsVisitor",
        "i < Item::count(a); i += 2 * gridDim.x) {\n    const Item item(a, i);\n    MomentsVisitor",
    ),
    Mutation(
        STATS,
        "dropped chunk of the columns",
        "for (int64_t chunk = 0; chunk < chunks; ++chunk) sum +=",
        "for (int64_t chunk = 0; chunk < chunks - (chunks > 1); ++chunk) sum +=",
    ),
    Mutation(
        STATS,
        "missing barrier: the block's sum before all warps' are there",
        f"= value;\n  {BARRIER}\n  float all",
        "= value;\n  float all",
    ),
    Mutation(
        STATS,
        "missing barrier: a sum overwrites the one before",
        f"  {BARRIER}  // the results of the call before have been read\n",
        "",
    ),
    Mutation(
        STATS,
        "the spread between heads does not count",
        "variance += fmaf(deviation, deviation, head[logits::kVariance]);",
        "variance += head[logits::kVariance];",
    ),
    Mutation(
        STATS,
        "wrong centre: the mean is taken off twice",
        "column_means[key_of(n, j)] - mean;",
        "column_means[key_of(n, j)];",
    ),
    Mutation(
        MEDIAN,
        "negative logits sort as positive ones",
        "return bits & 0x80000000u ? ~bits : bits | 0x80000000u;",
        "return bits;",
    ),
    Mutation(
        MEDIAN,
        "the upper median",
        "(a.matrices * a.q.tokens * a.k.tokens - 1) / 2",
        "a.matrices * a.q.tokens * a.k.tokens / 2",
    ),
    Mutation(
        MEDIAN,
        "counted whatever the digits before",
        "inside && (key & digit.above) == digit.prefix",
        "inside",
    ),
    Mutation(
        MEDIAN,
        "a bin's count at its rank counts as below",
        "lane < kBins && sum <= rank",
        "lane < kBins && sum < rank",
    ),
    Mutation(
        MEDIAN,
        "skipped warps of the counts",
        "for (int other = 1; other < kWarps; ++other)",
        "for (int other = 1; other < kWarps - 4; ++other)",
    ),
    Mutation(
        MEDIAN,
        "missing barrier: sums of other warps are not there yet",
        "warp_sums[warp][lane] = sum;\n    __syncthreads();",
        "warp_sums[warp][lane] = sum;",
    ),
]
