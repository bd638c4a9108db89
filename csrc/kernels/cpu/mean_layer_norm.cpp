// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/mean_layer_norm.h"

#include "kernels/cpu/layer_norm.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

// Adds LayerNorm (without weight and bias) of kCount rows to sums [padded D], up to one constant,
// which is added to `shift` and has to be subtracted from every channel in the end: rest * rstd,
// which is the same for all channels of a row.
template <int kCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void add_rows(Rows<kUnitStride, T> rows, int64_t t, float eps, float* sums,
                               float& shift) {
  const RowStatistics<kCount> row =
      row_statistics<kCount>(rows, t, eps, [](int, int64_t, const Vec&) {});
  Vec mean[kCount], rstd[kCount];
  for (int r = 0; r < kCount; ++r) {
    mean[r] = broadcast(row.mean[r]);
    rstd[r] = broadcast(row.rstd[r]);
    shift += row.rest[r] * row.rstd[r];
  }

  // The third reading of the rows.
  const int64_t whole = rows.channels / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    Vec running = load(sums + c);
    for (int r = 0; r < kCount; ++r)
      running = fma(load_whole(rows, t + r, c) - mean[r], rstd[r], running);
    store(sums + c, running);
  }
  if (whole < rows.channels) {
    Vec running = load(sums + whole);
    for (int r = 0; r < kCount; ++r) running = fma(row.last[r], rstd[r], running);
    store(sums + whole, running);
  }
}

void partial_sums(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  visit_chunks(
      a, kMeanLayerNormTokensPerChunk, begin, end, [&](const auto& rows, int64_t item, int64_t) {
        float* sums = a.partial + item * padded;
        for (int64_t c = 0; c < padded; c += kLanes) store(sums + c, Vec{});
        // Rows are added one after the other, however they are grouped.
        float shift = 0.0f;
        visit_rows(rows,
                   [&]<int kCount>(int64_t t) { add_rows<kCount>(rows, t, a.eps, sums, shift); });
        const Vec constant = broadcast(shift);
        for (int64_t c = 0; c < padded; c += kLanes) store(sums + c, load(sums + c) - constant);
      });
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
