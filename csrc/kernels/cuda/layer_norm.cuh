// SPDX-License-Identifier: Apache-2.0
// Row statistics and folded parameters, for the kernels of every operator on LayerNorm(x).
#pragma once

#include "kernels/cuda/vec.cuh"
#include "kernels/layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast::cuda {

struct RowStatistics {
  // As computed, and what it lacks to the exact mean: that is off by its own rounding, and the
  // second reading finds the mean of what is left.
  float mean, rest;
  float rstd;  // 1 / sqrt(variance + eps)
};

// The statistics of a row of `channels` elements, by one warp, for all its lanes, in groups of
// kWidth, which load(group, fill, out) reads; missing elements become `fill`. On the second reading
// each lane calls visit(group, centred) with its elements minus mean, zero where there are none.
template <int kWidth, class Load, class Visit>
__device__ inline RowStatistics row_statistics(const Load& load, int64_t channels, float eps,
                                               int lane, const Visit& visit) {
  const int64_t groups = divide_up(channels, kWidth);
  const float d = static_cast<float>(channels);
  float values[kWidth];

  float sum = 0.0f;
  for (int64_t g = lane; g < groups; g += kWarp) {
    load(g, 0.0f, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += values[i];
  }
  const float mean = warp_sum(sum) / d;
  float centred_sum = 0.0f, squares = 0.0f;
  for (int64_t g = lane; g < groups; g += kWarp) {
    load(g, mean, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values[i] -= mean;
      centred_sum += values[i];
      squares = fmaf(values[i], values[i], squares);
    }
    visit(g, values);
  }
  const float rest = warp_sum(centred_sum) / d;
  float variance = warp_sum(squares) / d - rest * rest;
  if (variance < 0.0f) variance = 0.0f;  // by rounding; NaN passes
  return {mean, rest, 1.0f / sqrtf(variance + eps)};
}

// Of a row in memory.
template <bool kVector, class T, class Visit>
__device__ inline RowStatistics row_statistics(const T* row, const LayerNormInput& in, int lane,
                                               const Visit& visit) {
  constexpr int kWidth = kGroup<T>;
  return row_statistics<kWidth>(
      [&](int64_t group, float fill, float (&out)[kWidth]) {
        load_group<kVector>(row, group, in.channel_stride, in.channels, fill, out);
      },
      in.channels, in.eps, lane, visit);
}

// Folds LayerNorm's weight g and bias b into a vector v [channels], by one warp: g v, zero from
// there to `padded`, its sum, and b . v.
__device__ inline void fold_norm(const float* vector, int64_t stride, const LayerNormInput& in,
                                 int64_t padded, int lane, float* folded, float* folded_sum,
                                 float* constant) {
  float sum = 0.0f, dot = 0.0f;
  // Unrolled as far as registers last: more of it spills.
#pragma unroll 2
  for (int64_t c = lane; c < padded; c += kWarp) {
    float value = 0.0f;
    if (c < in.channels) {
      value = vector[c * stride];
      if (in.bias.data) dot = fmaf(element(in.bias, c), value, dot);
      if (in.weight.data) value *= element(in.weight, c);
    }
    sum += value;
    folded[c] = value;
  }
  sum = warp_sum(sum);
  dot = warp_sum(dot);
  if (lane == 0) {
    *folded_sum = sum;
    *constant = dot;
  }
}

}  // namespace fiqa_fast::cuda
