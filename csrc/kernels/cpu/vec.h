// SPDX-License-Identifier: Apache-2.0
// Sixteen float32 lanes, whatever the width of the processor's registers.
//
// A kernel that works lane by lane on these sixteen, and reduces them with sum(), adds in the same
// order at every instruction set level and for every memory layout. Include this from kernel files
// only: everything here has internal linkage, because a function compiled for AVX-512 must never be
// the copy that the linker keeps for the baseline. For the same reason no standard template is
// used, and the files are compiled with -ffp-contract=off: only fma() fuses.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels/dtype.h"

#define FIQA_FAST_INLINE static inline __attribute__((always_inline))

namespace fiqa_fast::FIQA_FAST_ISA {

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = static_cast<int>(kLanes) / kWidth;

// GCC and Clang vectors: arithmetic operators work lane by lane. The second of each pair may lie at
// any address.
typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef float FloatsAnywhere __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntsAnywhere __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));
typedef uint16_t HalvesAnywhere __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

struct Vec {
  Floats part[kParts];
};

FIQA_FAST_INLINE Vec broadcast(float value) {
  Vec out;
  for (int p = 0; p < kParts; ++p) out.part[p] = value - Floats{};
  return out;
}

FIQA_FAST_INLINE Vec operator+(Vec a, Vec b) {
  for (int p = 0; p < kParts; ++p) a.part[p] += b.part[p];
  return a;
}

FIQA_FAST_INLINE Vec operator-(Vec a, Vec b) {
  for (int p = 0; p < kParts; ++p) a.part[p] -= b.part[p];
  return a;
}

FIQA_FAST_INLINE Vec operator*(Vec a, Vec b) {
  for (int p = 0; p < kParts; ++p) a.part[p] *= b.part[p];
  return a;
}

FIQA_FAST_INLINE Vec operator/(Vec a, Vec b) {
  for (int p = 0; p < kParts; ++p) a.part[p] /= b.part[p];
  return a;
}

// a * b + c: fused where the processor can.
FIQA_FAST_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return c + a * b;
#endif
}

FIQA_FAST_INLINE Vec fma(Vec a, Vec b, Vec c) {
  for (int p = 0; p < kParts; ++p) c.part[p] = fma(a.part[p], b.part[p], c.part[p]);
  return c;
}

// Lane by lane; b where a is NaN.
FIQA_FAST_INLINE Vec max(Vec a, Vec b) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    b.part[p] = _mm512_maskz_max_ps(0xffff, a.part[p], b.part[p]);
#elif defined(__AVX2__)
    b.part[p] = _mm256_max_ps(a.part[p], b.part[p]);
#else
    const Words greater = (Words)(a.part[p] > b.part[p]);
    b.part[p] = (Floats)((greater & (Words)a.part[p]) | (~greater & (Words)b.part[p]));
#endif
  }
  return b;
}

FIQA_FAST_INLINE Vec min(Vec a, Vec b) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    b.part[p] = _mm512_maskz_min_ps(0xffff, a.part[p], b.part[p]);
#elif defined(__AVX2__)
    b.part[p] = _mm256_min_ps(a.part[p], b.part[p]);
#else
    const Words less = (Words)(a.part[p] < b.part[p]);
    b.part[p] = (Floats)((less & (Words)a.part[p]) | (~less & (Words)b.part[p]));
#endif
  }
  return b;
}

FIQA_FAST_INLINE Floats widen_bfloat16(Halves bits) {
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

FIQA_FAST_INLINE Floats widen_float16(Halves bits) {
#if defined(__AVX512F__)
  // The zero-masked form: GCC 12 warns about its own header in the plain one.
  return _mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)bits);
#elif defined(__aarch64__)
  return vcvt_f32_f16((float16x4_t)bits);
#else
  // Move exponent and mantissa into place, then correct the exponent's bias: by 127 - 15 for normal
  // numbers, by twice that for infinities and NaN; a subnormal is its mantissa above 2^-14.
  const Words wide = __builtin_convertvector(bits, Words);
  const Words exponent = wide & 0x7c00u;
  const Words magnitude = (wide & 0x7fffu) << 13;
  const Words special = (Words)(exponent == 0x7c00u);
  const Words subnormal = (Words)(exponent == 0u);
  const Words rebiased = magnitude + (112u << 23) + (special & (112u << 23));
  const Words smallest_normal = Words{} + (113u << 23);
  const Words renormalised =
      (Words)((Floats)(magnitude + smallest_normal) - (Floats)smallest_normal);
  const Words unsigned_bits = (subnormal & renormalised) | (~subnormal & rebiased);
  return (Floats)(unsigned_bits | ((wide & 0x8000u) << 16));
#endif
}

FIQA_FAST_INLINE Vec load(const float* from) {
  Vec out;
  for (int p = 0; p < kParts; ++p)
    out.part[p] = *reinterpret_cast<const FloatsAnywhere*>(from + p * kWidth);
  return out;
}

FIQA_FAST_INLINE Vec load(const BFloat16* from) {
  Vec out;
  for (int p = 0; p < kParts; ++p)
    out.part[p] = widen_bfloat16(*reinterpret_cast<const HalvesAnywhere*>(from + p * kWidth));
  return out;
}

FIQA_FAST_INLINE Vec load(const Float16* from) {
  Vec out;
  for (int p = 0; p < kParts; ++p)
    out.part[p] = widen_float16(*reinterpret_cast<const HalvesAnywhere*>(from + p * kWidth));
  return out;
}

FIQA_FAST_INLINE void store(float* to, Vec value) {
  for (int p = 0; p < kParts; ++p)
    *reinterpret_cast<FloatsAnywhere*>(to + p * kWidth) = value.part[p];
}

FIQA_FAST_INLINE Halves narrow_bfloat16(Floats value) {
  // To nearest, ties to even; NaN stays NaN.
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet = (bits >> 16) | 0x40u;
  const Words is_nan = (Words)(value != value);
  return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), Halves);
}

FIQA_FAST_INLINE Halves narrow_float16(Floats value) {
#if defined(__AVX512F__)
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (Halves)_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  return (Halves)vcvt_f16_f32((float32x4_t)value);
#else
  // To nearest, ties to even. Normal results: drop 13 bits of mantissa and correct the exponent's
  // bias. Subnormal ones: adding 2^-1 puts the unit of float16's last place, 2^-24, where float32's
  // is, so that the addition rounds. 65520 and above round to infinity.
  const Words bits = (Words)value;
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  const Words normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const Words subnormal = (Words)((Floats)magnitude + 0.5f) - (126u << 23);
  const Words small = (Words)(magnitude < (113u << 23));
  const Words large = (Words)(magnitude >= 0x477ff000u);
  const Words is_nan = (Words)(value != value);
  Words out = (subnormal & small) | (normal & ~small);
  out = (out & ~large) | (large & 0x7c00u);
  out = (out & ~is_nan) | (is_nan & (0x7e00u | ((bits >> 13) & 0x3ffu)));
  return __builtin_convertvector(out | sign, Halves);
#endif
}

FIQA_FAST_INLINE void store(BFloat16* to, Vec value) {
  for (int p = 0; p < kParts; ++p)
    *reinterpret_cast<HalvesAnywhere*>(to + p * kWidth) = narrow_bfloat16(value.part[p]);
}

FIQA_FAST_INLINE void store(Float16* to, Vec value) {
  for (int p = 0; p < kParts; ++p)
    *reinterpret_cast<HalvesAnywhere*>(to + p * kWidth) = narrow_float16(value.part[p]);
}

// The first `count` lanes.
template <class T>
FIQA_FAST_INLINE void store_some(T* to, Vec value, int64_t count) {
  T lanes[kLanes];
  store(lanes, value);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// The first `count` lanes, from elements `stride` apart; the other lanes are zero.
template <class T>
FIQA_FAST_INLINE Vec load_some(const T* from, int64_t stride, int64_t count) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i * stride];
  return load(lanes);
}

// Sixteen elements `stride` apart. kUnitStride says at compile time that stride is 1.
template <bool kUnitStride, class T>
FIQA_FAST_INLINE Vec load_strided(const T* from, int64_t stride) {
  if constexpr (kUnitStride) return load(from);
  return load_some(from, stride, kLanes);
}

// Sets the lanes from `count` on.
FIQA_FAST_INLINE Vec fill_from(Vec value, int64_t count, float fill) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t i = count; i < kLanes; ++i) lanes[i] = fill;
  return load(lanes);
}

// One bit for each lane of a comparison's result.
FIQA_FAST_INLINE uint32_t bits_of(Words lanes) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)lanes);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)lanes));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)lanes));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= (lanes[i] & 1u) << i;
  return bits;
#endif
}

// The lower and the upper halves of a and b, by turns.
FIQA_FAST_INLINE Floats interleave_low(Floats a, Floats b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

FIQA_FAST_INLINE Floats interleave_high(Floats a, Floats b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Makes rows of a square's columns. Interleaving the first half of the rows with the second turns
// the bits of an element's place, row and column, by one; as many rounds as a column has bits
// exchange the two.
FIQA_FAST_INLINE void transpose(Floats (&rows)[kWidth]) {
  for (int round = 1; round < kWidth; round *= 2) {
    Floats next[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kWidth / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kWidth / 2]);
    }
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

// The same of sixteen vectors.
FIQA_FAST_INLINE void transpose(Vec (&rows)[kLanes]) {
  Vec out[kLanes];
  for (int p = 0; p < kParts; ++p) {
    for (int r = 0; r < kParts; ++r) {
      Floats square[kWidth];
      for (int i = 0; i < kWidth; ++i) square[i] = rows[r * kWidth + i].part[p];
      transpose(square);
      for (int i = 0; i < kWidth; ++i) out[p * kWidth + i].part[r] = square[i];
    }
  }
  for (int i = 0; i < kLanes; ++i) rows[i] = out[i];
}

// Halves at a time, so the order does not depend on the width of the registers.
FIQA_FAST_INLINE float sum(Vec value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// One element of a parameter whose dtype is known at run time only.
FIQA_FAST_INLINE float element(const Channelwise& parameter, int64_t index) {
  const int64_t at = index * parameter.stride;
  switch (parameter.dtype) {
    case DType::kBFloat16:
      return load_some(static_cast<const BFloat16*>(parameter.data) + at, 1, 1).part[0][0];
    case DType::kFloat16:
      return load_some(static_cast<const Float16*>(parameter.data) + at, 1, 1).part[0][0];
    default:
      return static_cast<const float*>(parameter.data)[at];
  }
}

template <class T>
FIQA_FAST_INLINE Vec load_up_to(const T* from, int64_t stride, int64_t count) {
  return stride == 1 && count >= kLanes ? load(from)
                                        : load_some(from, stride, count < kLanes ? count : kLanes);
}

// Sixteen elements of such a parameter from `index` on; lanes from element `count` of the parameter
// on are zero.
FIQA_FAST_INLINE Vec elements(const Channelwise& parameter, int64_t index, int64_t count) {
  const int64_t at = index * parameter.stride, left = count - index;
  switch (parameter.dtype) {
    case DType::kBFloat16:
      return load_up_to(static_cast<const BFloat16*>(parameter.data) + at, parameter.stride, left);
    case DType::kFloat16:
      return load_up_to(static_cast<const Float16*>(parameter.data) + at, parameter.stride, left);
    default:
      return load_up_to(static_cast<const float*>(parameter.data) + at, parameter.stride, left);
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
