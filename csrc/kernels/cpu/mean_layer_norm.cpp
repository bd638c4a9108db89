// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/mean_layer_norm.h"

#include "kernels/cpu/layer_norm.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

void fold(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  if (!a.map) return;
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  for (int64_t image = begin; image < end; ++image) {
    const Channelwise u = {a.u + image * a.u_image_stride, DType::kFloat32, a.u_channel_stride};
    float* folded = a.folded + image * padded;
    Vec total = {}, constant = {};
    for (int64_t c = 0; c < padded; c += kLanes) {
      Vec value = elements(u, c, a.channels);
      if (a.bias.data) constant = fma(elements(a.bias, c, a.channels), value, constant);
      if (a.weight.data) value = elements(a.weight, c, a.channels) * value;
      total = total + value;
      store(folded + c, value);
    }
    a.folded_sum[image] = sum(total);
    a.constant[image] = sum(constant);
  }
}

// What a chunk of tokens has to give.
struct Chunk {
  float* sums;  // [padded D], of LayerNorm without weight and bias
  // A constant that the sums have too much of in every channel: rest * rstd, which is the same for
  // all channels of a row.
  float shift;
  const float* folded;  // [padded D], of the image
  float folded_sum, constant;
  float* map;  // of the tokens that come next; or null
};

template <bool kMap, int kCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void add_rows(Rows<kUnitStride, T> rows, int64_t t, float eps, Chunk& chunk) {
  Vec dots[kCount] = {};
  const RowStatistics<kCount> row =
      row_statistics<kCount>(rows, t, eps, [&](int r, int64_t c, const Vec& centred) {
        if constexpr (kMap) dots[r] = fma(centred, load(chunk.folded + c), dots[r]);
      });
  Vec mean[kCount], rstd[kCount];
  for (int r = 0; r < kCount; ++r) {
    mean[r] = broadcast(row.mean[r]);
    rstd[r] = broadcast(row.rstd[r]);
    chunk.shift += row.rest[r] * row.rstd[r];
    if constexpr (kMap) {
      const float dot = sum(dots[r]) - row.rest[r] * chunk.folded_sum;
      chunk.map[t + r] = row.rstd[r] * dot + chunk.constant;
    }
  }

  // The third reading of the rows.
  float* const sums = chunk.sums;
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

// Rows are added one after the other, however they are grouped.
template <bool kUnitStride, class T>
FIQA_FAST_INLINE void add_all(Rows<kUnitStride, T> rows, float eps, Chunk& chunk) {
  if (chunk.map)
    visit_rows(rows, [&]<int kCount>(int64_t t) { add_rows<true, kCount>(rows, t, eps, chunk); });
  else
    visit_rows(rows, [&]<int kCount>(int64_t t) { add_rows<false, kCount>(rows, t, eps, chunk); });
}

// A row at an offset in elements: one [D], as a parameter is.
Channelwise row_of(const void* data, DType dtype, int64_t offset, int64_t channel_stride) {
  const int64_t size = dtype == DType::kFloat32 ? 4 : 2;
  return {static_cast<const char*>(data) + offset * size, dtype, channel_stride};
}

// x + residual is added up a few rows at a time, then read as if it had always been in memory.
void add_all_with_residual(const MeanLayerNormArgs& a, int64_t item, int64_t first, int64_t count,
                           Chunk& chunk) {
  const int64_t image = item / a.chunks();
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  float* sums = a.sums + item * kMeanLayerNormTokensAdded * padded;
  for (int64_t t = 0; t < count; t += kMeanLayerNormTokensAdded) {
    const int64_t left = count - t;
    const int64_t added = left < kMeanLayerNormTokensAdded ? left : kMeanLayerNormTokensAdded;
    for (int64_t r = 0; r < added; ++r) {
      const int64_t token = first + t + r;
      const Channelwise x =
          row_of(a.x, a.dtype, image * a.image_stride + token * a.token_stride, a.channel_stride);
      const Channelwise residual =
          row_of(a.residual, a.residual_dtype,
                 image * a.residual_image_stride + token * a.residual_token_stride,
                 a.residual_channel_stride);
      for (int64_t c = 0; c < padded; c += kLanes)
        store(sums + r * padded + c,
              elements(x, c, a.channels) + elements(residual, c, a.channels));
    }
    add_all(Rows<true, float>{sums, added, a.channels, padded, 1}, a.eps, chunk);
    if (chunk.map) chunk.map += added;
  }
}

void partial_sums(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  visit_chunks(a, kMeanLayerNormTokensPerChunk, begin, end,
               [&](const auto& rows, int64_t item, int64_t first) {
                 const int64_t image = item / chunks;
                 Chunk chunk = {};
                 chunk.sums = a.partial + item * padded;
                 for (int64_t c = 0; c < padded; c += kLanes) store(chunk.sums + c, Vec{});
                 if (a.map) {
                   chunk.folded = a.folded + image * padded;
                   chunk.folded_sum = a.folded_sum[image];
                   chunk.constant = a.constant[image];
                   chunk.map = a.map + image * a.tokens + first;
                 }
                 if (a.residual)
                   add_all_with_residual(a, item, first, rows.count, chunk);
                 else
                   add_all(rows, a.eps, chunk);
                 const Vec shift = broadcast(chunk.shift);
                 for (int64_t c = 0; c < padded; c += kLanes)
                   store(chunk.sums + c, load(chunk.sums + c) - shift);
               });
}

void combine(const MeanLayerNormArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  const float n = static_cast<float>(a.tokens);
  for (int64_t image = begin; image < end; ++image) {
    const float* partial = a.partial + image * chunks * padded;
    float* mean = a.mean + image * a.channels;
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
        mean[c + i] = value;
      }
    }
  }
}

}  // namespace

const MeanLayerNormKernels mean_layer_norm_kernels_table = {fold, partial_sums, combine};

}  // namespace fiqa_fast::FIQA_FAST_ISA
