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
  using Inner = typename Number::Inner;

  int64_t rows;  // of the largest group of images
  int64_t head_width, head_padded, mixed_width;
  int64_t stream_steps, mixed_steps, hidden_steps, slice_width, slice_steps;
  int64_t line, part;  // bytes of a row of a head's queries, keys and values, and of a part of all
  int64_t mixed_stride, hidden_stride;  // of rows of floats
  // Offsets in the memory of a pass.
  int64_t normed, mixed, mixed_floats, hidden, hidden_floats, shared_bytes;
  int64_t head, attention, row, own_bytes;  // offsets in the memory of a thread

  Layout(const EngineShape& shape, int64_t images) {
    // Rows are computed two tiles at a time, also the last of the last image.
    rows = parts_of(images * shape.tokens(), kSide) * kSide + 2 * kSide;
    head_width = steps<Inner>(shape.head_dim()) * Inner::kDepth;
    head_padded = tiles(shape.head_dim()) * kSide;
    mixed_width = shape.heads * head_padded;
    stream_steps = steps<Number>(shape.dim);
    mixed_steps = steps<Number>(mixed_width);
    hidden_steps = steps<Number>(shape.hidden);
    slice_steps = steps<Number>(shape.hidden < kSlice ? shape.hidden : kSlice);
    slice_width = slice_steps * Number::kDepth;
    line = 3 * head_width * Inner::kBytes + kLineBytes;  // not a power of two
    part = rows * line;
    mixed_stride = float_stride(mixed_width);
    hidden_stride = float_stride(slice_width);
    normed = 0;
    mixed = normed + whole_lines(row_bytes<Number>(rows, shape.dim));
    mixed_floats = mixed + whole_lines(row_bytes<Number>(rows, mixed_width));
    hidden = mixed_floats + float_row_bytes<Number>(rows, mixed_stride);
    hidden_floats = hidden + whole_lines(row_bytes<Number>(rows, slice_width));
    shared_bytes = hidden_floats + float_row_bytes<Number>(rows, hidden_stride);
    head = 0;
    attention = head + part * Inner::kParts;
    row = attention + AttentionScratch<Inner>(shape.tokens(), shape.head_dim()).bytes;
    own_bytes = row + float_row_bytes<Number>(1, float_stride(shape.dim));
  }

  static int64_t whole_lines(int64_t bytes) { return parts_of(bytes, kLineBytes) * kLineBytes; }
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

// GELU's least value is -0.17. Where the hidden channels are bytes, this makes them positive, as
// ReLU6's are; the bias of the second layer takes it back.
template <class Number>
FIQA_FAST_INLINE float hidden_shift(const EngineShape& shape) {
  return Number::kByRow && !shape.relu6 ? 0.17f : 0;
}

// In this order a NaN stays one.
FIQA_FAST_INLINE Vec relu6(Vec value) { return min(broadcast(6), max(broadcast(0), value)); }

// Two tiles of rows at a time.
template <class Work>
FIQA_FAST_INLINE void share_rows(const Band& band, Member& member, Work work) {
  member.share(parts_of(band.rows(), 2 * kSide), [&](int64_t pair) {
    const int64_t begin = band.begin + pair * 2 * kSide, end = begin + 2 * kSide;
    work(begin, end < band.end ? end : band.end);
  });
}

// A norm of the stream, as a product's rows; `then`: what is added to the stream behind it.
template <class Number>
FIQA_FAST_INLINE void norm_rows(const Band& band, Member& member, const EngineShape& shape,
                                const EngineNorm& norm, const float* then, float* x,
                                const Layout<Number>& layout, char* shared, char* own) {
  const Operand y = packed_rows<Number>(shared + layout.normed, layout.rows, layout.stream_steps);
  share_rows(band, member, [&](int64_t begin, int64_t end) {
    const RowWriter<Number> out{y, true, reinterpret_cast<float*>(own + layout.row)};
    layer_norm(x, shape.stride(), begin, end, shape.dim, norm, then, out);
  });
}

// A block from behind its first norm until behind that of the next block, which may be null.
template <class Number>
FIQA_FAST_INLINE void run_block(Worker& worker, const EngineShape& shape, const EngineBlock& block,
                                const EngineBlock* after, float* x, int64_t images,
                                const Layout<Number>& layout, char* shared, char* own) {
  using Inner = typename Number::Inner;
  const int64_t rows = images * shape.tokens(), stride = shape.stride();
  const Operand y = packed_rows<Number>(shared + layout.normed, layout.rows, layout.stream_steps);
  const Operand mixed = packed_rows<Number>(shared + layout.mixed, layout.rows, layout.mixed_steps);
  char* head_rows = own + layout.head;

  const auto norm = [&](const Band& band, Member& member, const EngineNorm& of, const float* then) {
    norm_rows(band, member, shape, of, then, x, layout, shared, own);
  };
  // Rows of floats to bytes, for formats that are put as whole rows.
  const auto whole_rows = [&](const Band& band, Member& member, const float* floats,
                              int64_t floats_stride, int64_t width, bool has_zero,
                              const Operand& to) {
    if constexpr (Number::kByRow)
      share_rows(band, member, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          put_bytes(floats + r * floats_stride, width, has_zero, to, r);
      });
  };

  float* mixed_floats = reinterpret_cast<float*>(shared + layout.mixed_floats);
  worker.share(shape.heads, [&](int64_t head) {
    const int64_t width = 3 * layout.head_width, column_tiles = tiles(width);
    const Operand all =
        packed_columns<Number>(block.qkv.weight, shape.heads * column_tiles, layout.stream_steps);
    const Operand columns = moved(all, head * column_tiles);
    const char* next =
        head + 1 < shape.heads ? moved(columns, column_tiles).data : block.proj.weight;
    const float* bias = block.qkv.bias + head * width;
    for (int64_t panel = 0; 2 * panel < column_tiles; ++panel)
      product_panel<Number>(y, {0, rows}, columns, column_tiles, layout.stream_steps, panel, next,
                            [&](int64_t row, int64_t column, int64_t wide, const auto& value) {
                              char* to = head_rows + row * layout.line + column * Inner::kBytes;
                              for (int64_t c = 0; c < wide; c += kLanes)
                                Inner::put(to + c * Inner::kBytes, layout.part,
                                           value(c) + load(bias + column + c));
                            });
    const int64_t third = layout.head_width * Inner::kBytes;
    for (int64_t image = 0; image < images; ++image) {
      const int64_t first = image * shape.tokens(), channel = head * layout.head_padded;
      const char* q = head_rows + first * layout.line;
      RowWriter<Number> out{mixed, true, nullptr};
      attention<Inner>(q, q + third, q + 2 * third, layout.line, layout.part, shape.tokens(),
                       shape.head_dim(), block.scale, own + layout.attention,
                       [&](int64_t row, int64_t c, Vec value) {
                         if constexpr (Number::kByRow)
                           out.line = mixed_floats + (first + row) * layout.mixed_stride;
                         out.put(first + row, channel + c, value);
                       });
    }
  });
  const auto project = [&](const Band& band, Member& member) {
    whole_rows(band, member, mixed_floats, layout.mixed_stride, layout.mixed_width, true, mixed);
    accumulate<Number>(
        member, band, mixed,
        packed_columns<Number>(block.proj.weight, tiles(shape.dim), layout.mixed_steps),
        tiles(shape.dim), layout.mixed_steps, block.fc1.weight, x, stride);
  };

  const int64_t hidden_tiles = layout.hidden_steps * Number::kDepth / kSide;
  const Operand in = packed_columns<Number>(block.fc1.weight, hidden_tiles, layout.stream_steps);
  const Operand out =
      packed_columns<Number>(block.fc2.weight, tiles(shape.dim), layout.hidden_steps);
  const Slices out_slices{layout.hidden_steps, tiles(shape.dim), steps<Number>(kSlice)};
  const float shift = hidden_shift<Number>(shape);
  // Laid out alike for all slices: bands need not be at the same one.
  const Operand hidden =
      packed_rows<Number>(shared + layout.hidden, layout.rows, layout.slice_steps);
  float* hidden_floats = reinterpret_cast<float*>(shared + layout.hidden_floats);
  const auto mlp = [&](const Band& band, Member& member) {
    for (int64_t first = 0; first < shape.hidden; first += kSlice) {
      const int64_t left = shape.hidden - first, wide = left < kSlice ? left : kSlice;
      const int64_t wide_steps = steps<Number>(wide),
                    wide_tiles = wide_steps * Number::kDepth / kSide;
      const Operand in_slice = moved(in, first / kSide);
      const Operand out_slice = slice_of<Number>(out, out_slices, first / kSlice);
      const float* bias = block.fc1.bias + first;
      const auto hidden_product = [&](auto activated) {
        product<Number>(member, band, y, in_slice, wide_tiles, layout.stream_steps, out_slice.data,
                        [&](int64_t row, int64_t column, int64_t columns, const auto& value) {
                          RowWriter<Number> put{hidden, false, nullptr};
                          if constexpr (Number::kByRow)
                            put.line = hidden_floats + row * layout.hidden_stride;
                          for (int64_t c = 0; c < columns; c += kLanes)
                            put.put(row, column + c, activated(value(c) + load(bias + column + c)));
                        });
      };
      if (shape.relu6)
        hidden_product([](Vec value) { return relu6(value); });
      else
        hidden_product([=](Vec value) { return gelu(value) + broadcast(shift); });
      whole_rows(band, member, hidden_floats, layout.hidden_stride, wide_steps * Number::kDepth,
                 false, hidden);
      const char* next = left > kSlice      ? moved(in_slice, kSlice / kSide).data
                         : after != nullptr ? after->qkv.weight
                                            : nullptr;
      accumulate<Number>(member, band, hidden, out_slice, tiles(shape.dim), wide_steps, next, x,
                         stride);
    }
  };

  // What follows from a row alone.
  worker.share_bands(rows, [&](const Band& band, Member& member) {
    project(band, member);
    norm(band, member, block.norm2, block.fc2.bias);
    mlp(band, member);
    if (after != nullptr) norm(band, member, after->norm1, after->proj.bias);
  });
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
