// SPDX-License-Identifier: Apache-2.0
// Row statistics, for the kernels of every operator on LayerNorm(x). As vec.h, include this from
// kernel files only.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// Rows taken together: their sums are independent chains of additions, and what all rows need is
// loaded once. Limited by registers: two accumulators per row or more, kParts each.
constexpr int kRows = kParts == 1 ? 4 : 2;

// Tokens of one image, passed by value: stores to results cannot change a copy, so that its members
// stay in registers. kUnitStride says at compile time that the stride of channels is 1.
template <bool kUnitStride, class T>
struct Rows {
  const T* data;  // of the first token
  int64_t count, channels;
  int64_t token_stride, channel_stride;
};

template <bool kUnitStride, class T>
FIQA_FAST_INLINE Vec load_whole(Rows<kUnitStride, T> rows, int64_t row, int64_t channel) {
  return load_strided<kUnitStride>(
      rows.data + row * rows.token_stride + channel * rows.channel_stride, rows.channel_stride);
}

// The channels from `channel` on, fewer than a vector; the other lanes are zero.
template <bool kUnitStride, class T>
FIQA_FAST_INLINE Vec load_last(Rows<kUnitStride, T> rows, int64_t row, int64_t channel) {
  return load_some(rows.data + row * rows.token_stride + channel * rows.channel_stride,
                   rows.channel_stride, rows.channels - channel);
}

template <int kCount>
struct RowStatistics {
  // As computed, and what it lacks to the exact mean: that is off by its own rounding (5e-4 where x
  // is about 1e4), and the second reading finds the mean of what is left.
  float mean[kCount], rest[kCount];
  float rstd[kCount];  // 1 / sqrt(variance + eps)
  // The channels beyond the last whole vector, minus mean; the other lanes are zero.
  Vec last[kCount];
};

// The statistics of kCount rows from row t on, which are read twice while they lie in the
// first-level cache: for the mean, and for the variance about that mean. The second reading calls
// visit(r, c, centred) with the channels of row t + r from c on, minus mean, zero beyond the last.
template <int kCount, bool kUnitStride, class T, class Visit>
FIQA_FAST_INLINE RowStatistics<kCount> row_statistics(Rows<kUnitStride, T> rows, int64_t t,
                                                      float eps, const Visit& visit) {
  const int64_t whole = rows.channels / kLanes * kLanes;
  const int64_t left = rows.channels - whole;
  const float d = static_cast<float>(rows.channels);
  RowStatistics<kCount> out = {};

  Vec total[kCount] = {};
  for (int64_t c = 0; c < whole; c += kLanes)
    for (int r = 0; r < kCount; ++r) total[r] = total[r] + load_whole(rows, t + r, c);
  if (left > 0) {
    for (int r = 0; r < kCount; ++r) {
      out.last[r] = load_last(rows, t + r, whole);
      total[r] = total[r] + out.last[r];
    }
  }

  Vec mean[kCount], squares[kCount] = {};
  for (int r = 0; r < kCount; ++r) {
    out.mean[r] = sum(total[r]) / d;
    mean[r] = broadcast(out.mean[r]);
    total[r] = Vec{};
  }
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int r = 0; r < kCount; ++r) {
      const Vec centred = load_whole(rows, t + r, c) - mean[r];
      total[r] = total[r] + centred;
      squares[r] = fma(centred, centred, squares[r]);
      visit(r, c, centred);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    if (left > 0) {
      // Lanes beyond the last channel hold the mean: centred, they add nothing.
      out.last[r] = fill_from(out.last[r], left, out.mean[r]) - mean[r];
      total[r] = total[r] + out.last[r];
      squares[r] = fma(out.last[r], out.last[r], squares[r]);
      visit(r, whole, out.last[r]);
    }
    out.rest[r] = sum(total[r]) / d;
    float variance = sum(squares[r]) / d - out.rest[r] * out.rest[r];
    if (variance < 0.0f) variance = 0.0f;  // by rounding; NaN passes
    out.rstd[r] = 1.0f / __builtin_sqrtf(variance + eps);
  }
  return out;
}

// Calls visit.operator()<kCount>(t) for all rows, kRows at a time while there are as many. A row's
// result must not depend on how rows are grouped: that differs between instruction set levels.
template <bool kUnitStride, class T, class Visit>
FIQA_FAST_INLINE void visit_rows(Rows<kUnitStride, T> rows, const Visit& visit) {
  int64_t t = 0;
  for (; t + kRows <= rows.count; t += kRows) visit.template operator()<kRows>(t);
  for (; t < rows.count; ++t) visit.template operator()<1>(t);
}

template <bool kUnitStride, class T, class Visit>
FIQA_FAST_INLINE void visit_chunks_of(const LayerNormInput& in, int64_t tokens_per_chunk,
                                      int64_t begin, int64_t end, const Visit& visit) {
  const int64_t chunks = divide_up(in.tokens, tokens_per_chunk);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item % chunks * tokens_per_chunk;
    const int64_t remaining = in.tokens - first;
    const T* data =
        static_cast<const T*>(in.x) + item / chunks * in.image_stride + first * in.token_stride;
    visit(Rows<kUnitStride, T>{data, remaining < tokens_per_chunk ? remaining : tokens_per_chunk,
                               in.channels, in.token_stride, in.channel_stride},
          item, first);
  }
}

template <class T, class Visit>
FIQA_FAST_INLINE void visit_chunks_as(const LayerNormInput& in, int64_t tokens_per_chunk,
                                      int64_t begin, int64_t end, const Visit& visit) {
  if (in.channel_stride == 1 || in.channels == 1)
    visit_chunks_of<true, T>(in, tokens_per_chunk, begin, end, visit);
  else
    visit_chunks_of<false, T>(in, tokens_per_chunk, begin, end, visit);
}

// Calls visit(rows, item, first) for the chunks [begin, end) of B * chunks: their tokens, and the
// number of the first of these in its image.
template <class Visit>
FIQA_FAST_INLINE void visit_chunks(const LayerNormInput& in, int64_t tokens_per_chunk,
                                   int64_t begin, int64_t end, const Visit& visit) {
  switch (in.dtype) {
    case DType::kFloat32:
      return visit_chunks_as<float>(in, tokens_per_chunk, begin, end, visit);
    case DType::kBFloat16:
      return visit_chunks_as<BFloat16>(in, tokens_per_chunk, begin, end, visit);
    case DType::kFloat16:
      return visit_chunks_as<Float16>(in, tokens_per_chunk, begin, end, visit);
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
