// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/add_layer_norm.h"

#include "kernels/cpu/layer_norm.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

template <bool kUnitStride, class T>
FIQA_FAST_INLINE void add_row(const AddLayerNormCpuArgs& a, const float* x, const T* residual,
                              float* sum) {
  const int64_t xs = a.x_channel_stride, rs = a.residual_channel_stride;
  int64_t c = 0;
  for (; c + kLanes <= a.channels; c += kLanes)
    store(sum + c, load_strided<kUnitStride>(x + c * xs, xs) +
                       load_strided<kUnitStride>(residual + c * rs, rs));
  const int64_t left = a.channels - c;
  if (left > 0)
    store_some(sum + c, load_some(x + c * xs, xs, left) + load_some(residual + c * rs, rs, left),
               left);
}

// LayerNorm of kCount rows from row t on. With w, of the same rows, adds their dot product to total
// just as layer_norm_dot does.
template <int kCount, class Out>
FIQA_FAST_INLINE void norm_rows(const AddLayerNormCpuArgs& a, Rows<true, float> rows, int64_t t,
                                const float* w, float& total, Out* normed) {
  Vec dots[kCount] = {}, totals[kCount] = {};
  const RowStatistics<kCount> row =
      row_statistics<kCount>(rows, t, a.eps, [&](int r, int64_t c, const Vec& centred) {
        if (!w) return;
        const Vec factor = load(w + (t + r) * a.w_token_stride + c);
        dots[r] = fma(centred, factor, dots[r]);
        totals[r] = totals[r] + factor;
      });
  if (w) {
    for (int r = 0; r < kCount; ++r)
      total += row.rstd[r] * (sum(dots[r]) - row.rest[r] * sum(totals[r]));
  }
  for (int64_t c = 0; c < a.channels; c += kLanes) {
    const int64_t left = a.channels - c;
    const Vec weight = a.weight.data ? elements(a.weight, c, a.channels) : broadcast(1.0f);
    const Vec bias = a.bias.data ? elements(a.bias, c, a.channels) : Vec{};
    for (int r = 0; r < kCount; ++r) {
      const Vec centred =
          left < kLanes ? row.last[r] : load_whole(rows, t + r, c) - broadcast(row.mean[r]);
      const Vec value = (centred - broadcast(row.rest[r])) * broadcast(row.rstd[r]);
      Out* to = normed + (t + r) * a.channels + c;
      if (left < kLanes)
        store_some(to, fma(value, weight, bias), left);
      else
        store(to, fma(value, weight, bias));
    }
  }
}

template <class T, class Out, bool kUnitStride>
FIQA_FAST_INLINE void add_and_norm_of(const AddLayerNormCpuArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / chunks;
    const int64_t first = item % chunks * kAddLayerNormTokensPerChunk;
    const int64_t left = a.tokens - first;
    const int64_t count = left < kAddLayerNormTokensPerChunk ? left : kAddLayerNormTokensPerChunk;
    const float* x = a.x + image * a.x_image_stride + first * a.x_token_stride;
    const T* residual = static_cast<const T*>(a.residual) + image * a.residual_image_stride +
                        first * a.residual_token_stride;
    const int64_t at = (image * a.tokens + first) * a.channels;
    float* sum = a.sum + at;
    for (int64_t t = 0; t < count; ++t)
      add_row<kUnitStride>(a, x + t * a.x_token_stride, residual + t * a.residual_token_stride,
                           sum + t * a.channels);
    const Rows<true, float> rows = {sum, count, a.channels, a.channels, 1};
    Out* normed = static_cast<Out*>(a.normed) + at;
    const float* w = a.w ? a.w + first * a.w_token_stride : nullptr;
    float total = 0.0f;
    visit_rows(rows,
               [&]<int kCount>(int64_t t) { norm_rows<kCount>(a, rows, t, w, total, normed); });
    if (w) a.partial[item] = total;
  }
}

template <class T, class Out>
FIQA_FAST_INLINE void add_and_norm_as(const AddLayerNormCpuArgs& a, int64_t begin, int64_t end) {
  if (a.x_channel_stride == 1 && a.residual_channel_stride == 1)
    add_and_norm_of<T, Out, true>(a, begin, end);
  else
    add_and_norm_of<T, Out, false>(a, begin, end);
}

template <class T>
FIQA_FAST_INLINE void add_and_norm_from(const AddLayerNormCpuArgs& a, int64_t begin, int64_t end) {
  switch (a.normed_dtype) {
    case DType::kFloat32:
      return add_and_norm_as<T, float>(a, begin, end);
    case DType::kBFloat16:
      return add_and_norm_as<T, BFloat16>(a, begin, end);
    case DType::kFloat16:
      return add_and_norm_as<T, Float16>(a, begin, end);
  }
}

void add_and_norm(const AddLayerNormCpuArgs& a, int64_t begin, int64_t end) {
  switch (a.residual_dtype) {
    case DType::kFloat32:
      return add_and_norm_from<float>(a, begin, end);
    case DType::kBFloat16:
      return add_and_norm_from<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return add_and_norm_from<Float16>(a, begin, end);
  }
}

}  // namespace

const AddLayerNormKernels add_layer_norm_kernels_table = {add_and_norm};

}  // namespace fiqa_fast::FIQA_FAST_ISA
