// SPDX-License-Identifier: Apache-2.0
// What single elements become in the instructions that the CPU kernels use beyond AVX2, in plain
// C++. After the operations in Intel's Software Developer's Manual, volume 2. Compiled with
// -ffp-contract=off.
//
// Everything in this folder has internal linkage: it is compiled for several processors.
#pragma once

#include <stdint.h>
#include <string.h>

namespace fiqa_fast::model {
namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline bool is_nan(float value) { return value != value; }
inline uint32_t sign_of(float value) { return bits_of(value) & 0x80000000u; }

// MAXPS and MINPS: the second where they are equal, or where either is NaN.
inline float greater_of(float a, float b) { return a > b ? a : b; }
inline float lesser_of(float a, float b) { return a < b ? a : b; }

// VCVTPH2PS: exact; a NaN becomes a quiet one.
inline float float_of_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31)
    return float_of(sign | 0x7f800000u | mantissa << 13 | (mantissa != 0 ? 0x400000u : 0));
  float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  if (exponent != 0) {
    magnitude = static_cast<float>(1024 + mantissa) * 0x1p-24f;
    for (uint32_t e = 1; e < exponent; ++e) magnitude *= 2;
  }
  return float_of(sign | bits_of(magnitude));
}

// VCVTPS2PH, to nearest, ties to even.
inline uint16_t half_of_float(float value) {
  const uint32_t sign = sign_of(value) >> 16, bits = bits_of(value) & 0x7fffffffu;
  if (is_nan(value)) return static_cast<uint16_t>(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
  int32_t exponent = static_cast<int32_t>(bits >> 23) - 127;
  if (exponent > 15) return static_cast<uint16_t>(sign | 0x7c00u);
  if (exponent < -14) exponent = -14;
  // In units of the result's last place, of which a normal result has 1024 to 2047.
  double units = float_of(bits);
  for (int32_t e = exponent - 10; e < 0; ++e) units *= 2;
  for (int32_t e = exponent - 10; e > 0; --e) units /= 2;
  uint32_t whole = static_cast<uint32_t>(units);
  const double rest = units - whole;
  if (rest > 0.5 || (rest == 0.5 && whole % 2 == 1)) ++whole;
  // 2048 units are the next exponent's first number, or infinity: the carry says so by itself.
  return static_cast<uint16_t>(sign | (static_cast<uint32_t>(exponent + 14) * 1024 + whole));
}

// VCVTNEPS2BF16: to nearest, ties to even; a denormal becomes zero, a NaN quiet.
inline uint16_t bfloat16_of(float value) {
  const uint32_t bits = bits_of(value), exponent = bits >> 23 & 255;
  if (exponent == 0) return static_cast<uint16_t>(sign_of(value) >> 16);
  if (is_nan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float without_denormal(float value) {
  const uint32_t bits = bits_of(value);
  return float_of((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}

// a * b + c, rounded once to nearest, with denormals taken as zero and flushed to zero (DAZ, FTZ).
// Without a branch, for compilers to make vectors of it.
inline float fma_flushed(float a, float b, float c) {
  a = without_denormal(a), b = without_denormal(b), c = without_denormal(c);
  const float sum = __builtin_fmaf(a, b, c);
  // A sum is flushed if it is below the smallest normal number when it is rounded as if exponents
  // had no end: on a larger scale. Terms of tiny sums are not so large that they would overflow.
  const float smallest = 0x1p-126f, scale = 0x1p64f;
  const bool first = __builtin_fabsf(a) < __builtin_fabsf(b);
  const float scaled = __builtin_fmaf(a * (first ? scale : 1), b * (first ? 1 : scale), c * scale);
  const bool tiny = __builtin_fabsf(sum) <= smallest && __builtin_fabsf(scaled) < smallest * scale;
  return float_of(tiny ? sign_of(sum) : bits_of(sum));
}

inline float add_flushed(float a, float b) { return fma_flushed(a, 1, b); }

// VREDUCEPS, without binary places, to nearest and ties to even: what rounding to an integer
// leaves, with the sign of that subtraction; of an infinity nothing.
inline float rest_of(float value) {
  if (is_nan(value)) return float_of(bits_of(value) | 0x400000u);
  const float size = __builtin_fabsf(value);
  return size < 0x1p23f ? value - __builtin_nearbyintf(value) : 0.0f;
}

// VSCALEFPS: a * 2^floor(b), rounded once to nearest.
inline float scaled(float a, float b) {
  if (is_nan(b)) return float_of(bits_of(is_nan(a) ? a : b) | 0x400000u);
  const bool endless = __builtin_isinf(b);
  if (is_nan(a)) {
    const bool quiet = (bits_of(a) & 0x400000u) != 0;
    if (endless && quiet) return b > 0 ? b : 0.0f;
    return float_of(bits_of(a) | 0x400000u);
  }
  if (endless && (b > 0 ? a == 0 : __builtin_isinf(a))) return float_of(0xffc00000u);
  // Every power beyond these gives zero or infinity as well.
  const float power = __builtin_floorf(b < -400 ? -400 : b > 400 ? 400 : b);
  if (endless && b < 0) return float_of(sign_of(a));
  double result = a;
  for (float p = power; p > 0; --p) result *= 2;
  for (float p = power; p < 0; ++p) result /= 2;
  return static_cast<float>(result);
}

// The numbers of a word of two bfloat16.
inline float first_of(uint32_t pair) { return float_of(pair << 16); }
inline float second_of(uint32_t pair) { return float_of(pair & 0xffff0000u); }

// VDPBF16PS: the second pair is added before the first.
inline float add_bfloat16_pairs(float sum, uint32_t a, uint32_t b) {
  sum = fma_flushed(second_of(a), second_of(b), sum);
  return fma_flushed(first_of(a), first_of(b), sum);
}

// Four products of bytes, each taken as signed or not. Sums wrap around.
template <bool kSignedA, bool kSignedB>
inline int32_t add_byte_products(int32_t sum, uint32_t a, uint32_t b) {
  uint32_t all = static_cast<uint32_t>(sum);
  for (int i = 0; i < 32; i += 8) {
    const uint8_t x = static_cast<uint8_t>(a >> i), y = static_cast<uint8_t>(b >> i);
    const int32_t wide_x = kSignedA ? static_cast<int8_t>(x) : x;
    const int32_t wide_y = kSignedB ? static_cast<int8_t>(y) : y;
    all += static_cast<uint32_t>(wide_x * wide_y);
  }
  return static_cast<int32_t>(all);
}

}  // namespace
}  // namespace fiqa_fast::model
