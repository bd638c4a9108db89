// SPDX-License-Identifier: Apache-2.0
// The exponential function of sixteen lanes. Include this from kernel files only (see vec.h).
#pragma once

#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// exp(x) for x <= 0, to one unit in the last place; 0 below -87, where float32's normal numbers
// end. x = n log 2 + r with |r| <= log(2) / 2, exp(x) = 2^n (1 + r + r^2 p(r)) with p a minimax
// polynomial for the relative error.
FIQA_FAST_INLINE Vec exp_of_negative(Vec x) {
  const Vec log2_e = broadcast(1.44269504f);
  // The first part of log 2 has nine bits, so that its product with n is exact without fma, too.
  const Vec minus_log_2_high = broadcast(-0.693359375f);
  const Vec minus_log_2_low = broadcast(2.12194440e-4f);
  // Adding 1.5 * 2^23 rounds to an integer, which the lowest bits of the sum then are.
  const Vec rounder = broadcast(12582912.0f);
  const Vec rounded = fma(x, log2_e, rounder);
  const Vec n = rounded - rounder;
  const Vec r = fma(n, minus_log_2_low, fma(n, minus_log_2_high, x));
  Vec p = broadcast(0.0013814539415761828f);
  constexpr float kCoefficients[] = {0.00836874544620514f, 0.04166838899254799f,
                                     0.1666652113199234f, 0.4999999403953552f};
  for (const float coefficient : kCoefficients) p = fma(p, r, broadcast(coefficient));
  Vec out = broadcast(1.0f) + fma(p, r * r, r);
  for (int i = 0; i < kParts; ++i) {
    const Words power = ((Words)rounded.part[i] << 23) + (127u << 23);
    const Words normal = ~(Words)(x.part[i] < -87.0f);
    out.part[i] = (Floats)((Words)(out.part[i] * (Floats)power) & normal);
  }
  return out;
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
