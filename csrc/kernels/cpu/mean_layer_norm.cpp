// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/mean_layer_norm.h"

#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

// Rows taken together: their sums are independent chains of additions, and `sums` is loaded and
// stored once for all of them. Limited by registers: two accumulators per row, kParts each.
constexpr int kRows = kParts == 1 ? 4 : 2;

// Adds LayerNorm (without weight and bias) of kCount rows to sums [padded D], up to one constant,
// which is added to `shift` and has to be subtracted from every channel in the end.
//
// Each row is read three times while it lies in the first-level cache: for its mean, for the
// variance about that mean, and to be added. The computed mean is off by its own rounding (5e-4
// where x is about 1e4), so the second reading also finds the mean of what is left, `rest`; the
// exact mean is mean + rest, and rest * rstd is the same for all channels of a row: hence the one
// constant.
template <int kCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void add_rows(const T* rows, int64_t token_stride, int64_t channel_stride,
                               int64_t channels, float eps, float* sums, float& shift) {
  const int64_t whole = channels / kLanes * kLanes;
  const int64_t left = channels - whole;

  Vec total[kCount] = {};
  for (int64_t c = 0; c < whole; c += kLanes)
    for (int r = 0; r < kCount; ++r)
      total[r] = total[r] + load_strided<kUnitStride>(rows + r * token_stride + c * channel_stride,
                                                      channel_stride);
  Vec last[kCount] = {};
  if (left > 0) {
    for (int r = 0; r < kCount; ++r) {
      last[r] = load_some(rows + r * token_stride + whole * channel_stride, channel_stride, left);
      total[r] = total[r] + last[r];
    }
  }

  Vec mean[kCount], rstd[kCount], squares[kCount] = {};
  for (int r = 0; r < kCount; ++r) {
    mean[r] = broadcast(sum(total[r]) / static_cast<float>(channels));
    total[r] = Vec{};
  }
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int r = 0; r < kCount; ++r) {
      const Vec centred =
          load_strided<kUnitStride>(rows + r * token_stride + c * channel_stride, channel_stride) -
          mean[r];
      total[r] = total[r] + centred;
      squares[r] = fma(centred, centred, squares[r]);
    }
  }
  for (int r = 0; r < kCount; ++r) {
    if (left > 0) {
      // Lanes beyond the last channel hold the mean: centred, they add nothing.
      last[r] = fill_from(last[r], left, mean[r].part[0][0]) - mean[r];
      total[r] = total[r] + last[r];
      squares[r] = fma(last[r], last[r], squares[r]);
    }
    const float d = static_cast<float>(channels);
    const float rest = sum(total[r]) / d;
    float variance = sum(squares[r]) / d - rest * rest;
    if (variance < 0.0f) variance = 0.0f;  // by rounding; NaN passes
    const float inverse = 1.0f / __builtin_sqrtf(variance + eps);
    rstd[r] = broadcast(inverse);
    shift += rest * inverse;
  }

  for (int64_t c = 0; c < whole; c += kLanes) {
    Vec running = load(sums + c);
    for (int r = 0; r < kCount; ++r) {
      const Vec centred =
          load_strided<kUnitStride>(rows + r * token_stride + c * channel_stride, channel_stride) -
          mean[r];
      running = fma(centred, rstd[r], running);
    }
    store(sums + c, running);
  }
  if (left > 0) {
    Vec running = load(sums + whole);
    for (int r = 0; r < kCount; ++r) running = fma(last[r], rstd[r], running);
    store(sums + whole, running);
  }
}

template <bool kUnitStride, class T>
void partial_sums_of(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / chunks;
    const int64_t first = item % chunks * kMeanLayerNormTokensPerChunk;
    const int64_t remaining = a.tokens - first;
    const int64_t count =
        remaining < kMeanLayerNormTokensPerChunk ? remaining : kMeanLayerNormTokensPerChunk;
    const T* rows = static_cast<const T*>(a.x) + image * a.image_stride + first * a.token_stride;
    float* sums = a.partial + item * padded;
    for (int64_t c = 0; c < padded; c += kLanes) store(sums + c, Vec{});

    // Rows are added one after the other, however they are grouped.
    float shift = 0.0f;
    int64_t t = 0;
    for (; t + kRows <= count; t += kRows)
      add_rows<kRows, kUnitStride>(rows + t * a.token_stride, a.token_stride, a.channel_stride,
                                   a.channels, a.eps, sums, shift);
    for (; t < count; ++t)
      add_rows<1, kUnitStride>(rows + t * a.token_stride, a.token_stride, a.channel_stride,
                               a.channels, a.eps, sums, shift);
    const Vec constant = broadcast(shift);
    for (int64_t c = 0; c < padded; c += kLanes) store(sums + c, load(sums + c) - constant);
  }
}

template <class T>
void partial_sums_as(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  if (a.channel_stride == 1 || a.channels == 1)
    partial_sums_of<true, T>(a, begin, end);
  else
    partial_sums_of<false, T>(a, begin, end);
}

void partial_sums(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return partial_sums_as<float>(a, begin, end);
    case DType::kBFloat16:
      return partial_sums_as<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return partial_sums_as<Float16>(a, begin, end);
  }
}

void combine(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  const float n = static_cast<float>(a.tokens);
  for (int64_t image = begin; image < end; ++image) {
    const float* partial = a.partial + image * chunks * padded;
    float* out = a.out + image * a.channels;
    for (int64_t c = 0; c < a.channels; c += kLanes) {
      Vec total = load(partial + c);
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        total = total + load(partial + chunk * padded + c);
      float lanes[kLanes];
      store(lanes, total);
      const int64_t count = a.channels - c < kLanes ? a.channels - c : kLanes;
      for (int64_t i = 0; i < count; ++i) {
        float value = lanes[i] / n;
        if (a.weight.data) value *= element(a.weight, c + i);
        if (a.bias.data) value += element(a.bias, c + i);
        out[c + i] = value;
      }
    }
  }
}

}  // namespace

const MeanLayerNormKernels mean_layer_norm_kernels_table = {partial_sums, combine};

}  // namespace fiqa_fast::FIQA_FAST_ISA
