// SPDX-License-Identifier: Apache-2.0
// One transformer block over the tokens of a few images: from the residual stream and back into it.
//
//   stream -> norm 1 -> per head: qkv, attention -> projection -> stream
//          -> norm 2 -> per slice of the MLP: fc1, activation, fc2 -> stream
//
// What lies between is as small as the caches: a head's queries, keys and values, and a slice of
// the hidden channels. The biases behind the residual sums are added to the stream by the norm that
// reads it last.
#pragma once

#include "engine/attention.h"
#include "engine/shape.h"

namespace fiqa_fast::FIQA_FAST_ISA {

constexpr int64_t kSlice = 512;  // hidden channels at a time

// Sizes that follow from a shape. A head's queries, keys and values are whole steps; its channels
// in front of the projection are whole vectors.
template <class Number>
struct Layout {
  int64_t rows;  // of the largest group of images
  int64_t head_width, head_padded, mixed_width;
  int64_t stream_steps, mixed_steps, hidden_steps, slice_steps;
  int64_t line, part;  // bytes of a row of a head's queries, keys and values, and of a part of all
  int64_t normed, mixed, hidden, shared_bytes;  // offsets in the memory of a pass
  int64_t head, attention, own_bytes;           // offsets in the memory of a thread

  Layout(const EngineShape& shape, int64_t images) {
    // Rows are computed two tiles at a time, and attention reads as many behind an image.
    rows = parts_of(images * shape.tokens(), kSide) * kSide + 2 * kSide;
    head_width = steps<Number>(shape.head_dim()) * Number::kDepth;
    head_padded = tiles(shape.head_dim()) * kSide;
    mixed_width = shape.heads * head_padded;
    stream_steps = steps<Number>(shape.dim);
    mixed_steps = steps<Number>(mixed_width);
    hidden_steps = steps<Number>(shape.hidden);
    slice_steps = steps<Number>(shape.hidden < kSlice ? shape.hidden : kSlice);
    line = 3 * head_width * Number::kBytes + kLineBytes;  // not a power of two
    part = rows * line;
    normed = 0;
    mixed = normed + tiled_bytes<Number>(rows, shape.dim);
    hidden = mixed + tiled_bytes<Number>(rows, mixed_width);
    shared_bytes = hidden + tiled_bytes<Number>(rows, slice_steps * Number::kDepth);
    head = 0;
    attention = head + part * Number::kParts;
    own_bytes = attention + AttentionScratch<Number>(shape.tokens(), shape.head_dim()).bytes;
  }
};

// 0.5 x (1 + erf(x / sqrt(2))), with erf of Abramowitz and Stegun 7.1.26, whose largest error is
// 1.5e-7.
FIQA_FAST_INLINE Vec gelu(Vec x) {
  const Vec one = broadcast(1), half = broadcast(0.5f);
  const Vec z = max(x, broadcast(0) - x) * broadcast(0.70710678f);
  const Vec t = one / fma(broadcast(0.3275911f), z, one);
  Vec p = broadcast(1.061405429f);
  constexpr float kCoefficients[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  for (const float coefficient : kCoefficients) p = fma(p, t, broadcast(coefficient));
  const Vec tail = half * p * t * exp_of_negative(broadcast(0) - z * z);  // erfc(z) / 2
  Vec out;
  for (int i = 0; i < kParts; ++i) {
    const Words negative = (Words)(x.part[i] < 0);
    const Words above = (Words)(1.0f - tail.part[i]);
    out.part[i] = (Floats)((negative & (Words)tail.part[i]) | (~negative & above));
  }
  return x * out;
}

FIQA_FAST_INLINE Vec activated(bool relu6, Vec value) {
  // In this order a NaN stays one.
  return relu6 ? min(broadcast(6), max(broadcast(0), value)) : gelu(value);
}

// `after` is what will be read next: the next block's first weights, or null.
template <class Number>
FIQA_FAST_INLINE void run_block(Member& member, const EngineShape& shape, const EngineBlock& block,
                                float* x, int64_t images, const Layout<Number>& layout,
                                char* shared, char* own, const char* after) {
  const int64_t rows = images * shape.tokens(), row_tiles = tiles(rows), stride = shape.stride();
  char *normed = shared + layout.normed, *mixed = shared + layout.mixed;
  char *hidden = shared + layout.hidden, *head_rows = own + layout.head;
  const Operand y = tiled<Number>(normed, layout.stream_steps);

  const auto norm = [&](const EngineNorm& of, const float* then) {
    member.share(parts_of(row_tiles, 2), [&](int64_t pair) {
      const int64_t begin = pair * 2 * kSide, end = begin + 2 * kSide;
      layer_norm<Number>(x, stride, begin, end < rows ? end : rows, shape.dim, of, then, normed);
    });
  };

  norm(block.norm1, block.proj.bias);
  member.share(shape.heads, [&](int64_t head) {
    const int64_t width = 3 * layout.head_width, column_tiles = tiles(width);
    const Operand all = tiled<Number>(block.qkv.weight, layout.stream_steps);
    const Operand columns = moved(all, head * column_tiles);
    const char* next =
        head + 1 < shape.heads ? moved(columns, column_tiles).data : block.proj.weight;
    const float* bias = block.qkv.bias + head * width;
    for (int64_t panel = 0; 2 * panel < column_tiles; ++panel)
      product_panel<Number>(y, row_tiles, columns, column_tiles, layout.stream_steps, panel, next,
                            [&](int64_t row, int64_t column, int64_t wide, const float* sums) {
                              char* to = head_rows + row * layout.line + column * Number::kBytes;
                              for (int64_t c = 0; c < wide; c += kLanes)
                                Number::put(to + c * Number::kBytes, layout.part,
                                            load(sums + c) + load(bias + column + c));
                            });
    const int64_t third = layout.head_width * Number::kBytes;
    for (int64_t image = 0; image < images; ++image) {
      const char* q = head_rows + image * shape.tokens() * layout.line;
      attention<Number>(q, q + third, q + 2 * third, layout.line, layout.part, shape.tokens(),
                        shape.head_dim(), block.scale, own + layout.attention, mixed,
                        layout.mixed_steps, image * shape.tokens(), head * layout.head_padded);
    }
  });
  accumulate<Number>(member, tiled<Number>(mixed, layout.mixed_steps), row_tiles,
                     tiled<Number>(block.proj.weight, layout.mixed_steps), tiles(shape.dim),
                     layout.mixed_steps, block.fc1.weight, x, stride);
  norm(block.norm2, block.fc2.bias);

  const Operand in = tiled<Number>(block.fc1.weight, layout.stream_steps);
  const Operand out = tiled<Number>(block.fc2.weight, layout.hidden_steps);
  for (int64_t first = 0; first < shape.hidden; first += kSlice) {
    const int64_t left = shape.hidden - first, wide = left < kSlice ? left : kSlice;
    const int64_t wide_steps = steps<Number>(wide),
                  wide_tiles = wide_steps * Number::kDepth / kSide;
    const Operand in_slice = moved(in, first / kSide);
    Operand out_slice = out;
    out_slice.data += first / Number::kDepth * out.step;
    const float* bias = block.fc1.bias + first;
    product<Number>(member, y, row_tiles, in_slice, wide_tiles, layout.stream_steps, out_slice.data,
                    [&](int64_t row, int64_t column, int64_t columns, const float* sums) {
                      for (int64_t c = 0; c < columns; c += kLanes)
                        Number::put(
                            place<Number>(hidden, wide_steps, row, column + c), kTileBytes,
                            activated(shape.relu6, load(sums + c) + load(bias + column + c)));
                    });
    const char* next = left > kSlice ? moved(in_slice, kSlice / kSide).data : after;
    accumulate<Number>(member, tiled<Number>(hidden, wide_steps), row_tiles, out_slice,
                       tiles(shape.dim), wide_steps, next, x, stride);
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
