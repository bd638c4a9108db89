// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/layer_norm_dot.h"

#include "kernels/cpu/layer_norm.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

void fold(const LayerNormDotArgs& a, int64_t begin, int64_t end) {
  const int64_t padded = LayerNormDotArgs::padded(a.channels);
  for (int64_t n = begin; n < end; ++n) {
    const Channelwise w = {a.w + n * a.w_token_stride, DType::kFloat32, a.w_channel_stride};
    float* folded = a.folded + n * padded;
    Vec constant = {};
    for (int64_t c = 0; c < padded; c += kLanes) {
      Vec value = elements(w, c, a.channels);
      if (a.bias.data) constant = fma(elements(a.bias, c, a.channels), value, constant);
      if (a.weight.data) value = elements(a.weight, c, a.channels) * value;
      store(folded + c, value);
    }
    a.constant[n] = sum(constant);
  }
}

// The sum over a chunk, one row after the other, however they are grouped. The dot product is taken
// while the statistics are found, with x minus the computed mean; what that lacks is made up for by
// the sum over the row of factors.
void partial_sums(const LayerNormDotArgs& a, int64_t begin, int64_t end) {
  const float* const w = a.folded ? a.folded : a.w;
  const int64_t stride = a.folded ? LayerNormDotArgs::padded(a.channels) : a.w_token_stride;
  visit_chunks(a, kLayerNormDotTokensPerChunk, begin, end,
               [&](const auto& rows, int64_t item, int64_t first) {
                 float total = 0.0f;
                 visit_rows(rows, [&]<int kCount>(int64_t t) {
                   const float* factors = w + (first + t) * stride;
                   Vec dots[kCount] = {}, totals[kCount] = {};
                   const RowStatistics<kCount> row = row_statistics<kCount>(
                       rows, t, a.eps, [&](int r, int64_t c, const Vec& centred) {
                         const Vec factor = load(factors + r * stride + c);
                         dots[r] = fma(centred, factor, dots[r]);
                         totals[r] = totals[r] + factor;
                       });
                   for (int r = 0; r < kCount; ++r) {
                     const float dot = sum(dots[r]) - row.rest[r] * sum(totals[r]);
                     total += row.rstd[r] * dot + (a.folded ? a.constant[first + t + r] : 0.0f);
                   }
                 });
                 a.partial[item] = total;
               });
}

void combine(const LayerNormDotArgs& a, int64_t begin, int64_t end) {
  const int64_t chunks = a.chunks();
  for (int64_t image = begin; image < end; ++image) {
    float total = a.partial[image * chunks];
    for (int64_t chunk = 1; chunk < chunks; ++chunk) total += a.partial[image * chunks + chunk];
    a.out[image] = total;
  }
}

}  // namespace

const LayerNormDotKernels layer_norm_dot_kernels_table = {fold, partial_sums, combine};

}  // namespace fiqa_fast::FIQA_FAST_ISA
