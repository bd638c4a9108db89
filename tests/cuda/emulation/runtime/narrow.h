// SPDX-License-Identifier: Apache-2.0
// 16-bit floating point numbers: widened exactly, narrowed to nearest, ties to even.
#pragma once

#include <stdint.h>

#include <bit>
#include <cmath>

namespace emulation {

enum class Narrow { kBFloat16, kFloat16 };

inline float widen_bfloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline float widen_float16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31,
                 mantissa = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);  // a subnormal, or zero
  return sign ? -magnitude : magnitude;
}

inline uint16_t narrow_float16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000u : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00u;
  if (magnitude >= 65520.0f) return sign | 0x7c00u;
  if (magnitude < 0x1p-14f)  // a subnormal, or the smallest normal number by rounding
    return static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(magnitude * 0x1p24f)));
  const int exponent = std::ilogb(magnitude);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 15) << 10) + mantissa - 1024));
}

inline float widen(uint16_t bits, Narrow type) {
  return type == Narrow::kBFloat16 ? widen_bfloat16(bits) : widen_float16(bits);
}

}  // namespace emulation
