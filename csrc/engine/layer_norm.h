// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine/rows.h"
#include "engine/shape.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// The LayerNorm of rows [begin, end) of x into a tiled left operand, and on the way what the next
// product's sums begin at: x += then.
template <class Number>
FIQA_FAST_INLINE void layer_norm(float* x, int64_t stride, int64_t begin, int64_t end, int64_t dim,
                                 const EngineNorm& norm, const float* then, RowWriter<Number> out) {
  const int64_t last = (dim - 1) / kLanes * kLanes;
  const Vec inside = fill_from(broadcast(1), dim - last, 0);  // the last lanes may be padding
  const float scale = 1.0f / static_cast<float>(dim);
  for (int64_t r = begin; r < end; ++r) {
    float* row = x + r * stride;
    // x is padded with zeros.
    const Vec all = sum_of(last, load(row + last), [&](int64_t c) { return load(row + c); });
    const Vec mean = broadcast(total(all) * scale);
    const Vec tail = (load(row + last) - mean) * inside;
    const Vec squares = sum_of(last, tail * tail, [&](int64_t c) {
      const Vec d = load(row + c) - mean;
      return d * d;
    });
    const float variance = total(squares) * scale;
    const Vec factor = broadcast(1.0f / __builtin_sqrtf(variance + norm.eps));
    for (int64_t c = 0; c < dim; c += kLanes) {
      const Vec value = load(row + c);
      store(row + c, value + load(then + c));
      out.put(r, c, fma((value - mean) * factor, load(norm.weight + c), load(norm.bias + c)));
    }
    out.end(r, last + kLanes);
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
