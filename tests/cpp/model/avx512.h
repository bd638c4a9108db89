// SPDX-License-Identifier: Apache-2.0
// Included before a kernel file that is compiled for AVX2: makes it the file's AVX-512 code, with a
// model of each intrinsic that it uses. One that is not modelled does not compile.
#pragma once

// The compiler's own header first: it looks at the macros that are defined below.
#include <immintrin.h>

#include "model/elements.h"

namespace fiqa_fast::model {
namespace {

using Floats = Elements<float, 16>;
using Halves = Elements<uint16_t, 16>;

inline bool is_set(__mmask16 mask, int i) { return (mask >> i & 1) != 0; }

inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const Floats x(a), y(b), z(c);
  Floats out;
  for (int i = 0; i < 16; ++i) out.at[i] = __builtin_fmaf(x.at[i], y.at[i], z.at[i]);
  return out;
}

inline __m512 maskz_max_ps(__mmask16 mask, __m512 a, __m512 b) {
  const Floats x(a), y(b);
  Floats out;
  for (int i = 0; i < 16; ++i) out.at[i] = is_set(mask, i) ? greater_of(x.at[i], y.at[i]) : 0;
  return out;
}

inline __m512 maskz_min_ps(__mmask16 mask, __m512 a, __m512 b) {
  const Floats x(a), y(b);
  Floats out;
  for (int i = 0; i < 16; ++i) out.at[i] = is_set(mask, i) ? lesser_of(x.at[i], y.at[i]) : 0;
  return out;
}

// The upper half onto the lower, until one element is left.
inline float reduce_add_ps(__m512 value) {
  Floats x(value);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x.at[i] = x.at[i] + x.at[i + half];
  return x.at[0];
}

inline float reduce_max_ps(__m512 value) {
  Floats x(value);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x.at[i] = greater_of(x.at[i], x.at[i + half]);
  return x.at[0];
}

inline __m512 reduce_ps(__m512 value, int places_and_rounding) {
  // The only one that is modelled.
  if (places_and_rounding != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) __builtin_trap();
  Floats x(value);
  for (float& each : x.at) each = rest_of(each);
  return x;
}

inline __m512 scalef_ps(__m512 a, __m512 b) {
  Floats x(a);
  const Floats y(b);
  for (int i = 0; i < 16; ++i) x.at[i] = scaled(x.at[i], y.at[i]);
  return x;
}

inline __m512 maskz_cvtph_ps(__mmask16 mask, __m256i halves) {
  const Halves from(halves);
  Floats out;
  for (int i = 0; i < 16; ++i) out.at[i] = is_set(mask, i) ? float_of_half(from.at[i]) : 0;
  return out;
}

inline __m256i maskz_cvtps_ph(__mmask16 mask, __m512 value, int rounding) {
  if (rounding != _MM_FROUND_TO_NEAREST_INT) __builtin_trap();  // the only one that is modelled
  const Floats from(value);
  Halves out;
  for (int i = 0; i < 16; ++i) out.at[i] = is_set(mask, i) ? half_of_float(from.at[i]) : 0;
  return out;
}

// The signs of sixteen words.
inline __mmask16 movepi32_mask(__m512i value) {
  const Elements<uint32_t, 16> words(value);
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= words.at[i] >> 31 << i;
  return static_cast<__mmask16>(bits);
}

inline __m512i loadu_si512(const void* from) {
  __m512i out;
  memcpy(&out, from, sizeof out);
  return out;
}

inline __m512i set1_epi32(int32_t value) {
  Elements<int32_t, 16> out;
  for (int32_t& word : out.at) word = value;
  return out;
}

inline __m512i set1_epi16(int16_t value) {
  Elements<int16_t, 32> out;
  for (int16_t& half : out.at) half = value;
  return out;
}

// Unsigned bytes times signed ones, added in pairs; what sixteen bits do not hold is cut off.
inline __m512i maddubs_epi16(__m512i a, __m512i b) {
  const Elements<uint8_t, 64> x(a);
  const Elements<int8_t, 64> y(b);
  Elements<int16_t, 32> out;
  for (int i = 0; i < 32; ++i) {
    const int32_t sum = x.at[2 * i] * y.at[2 * i] + x.at[2 * i + 1] * y.at[2 * i + 1];
    out.at[i] = static_cast<int16_t>(sum < -32768 ? -32768 : sum > 32767 ? 32767 : sum);
  }
  return out;
}

inline __m512i madd_epi16(__m512i a, __m512i b) {
  const Elements<int16_t, 32> x(a), y(b);
  Elements<int32_t, 16> out;
  for (int i = 0; i < 16; ++i)
    out.at[i] = static_cast<int32_t>(static_cast<uint32_t>(x.at[2 * i] * y.at[2 * i]) +
                                     static_cast<uint32_t>(x.at[2 * i + 1] * y.at[2 * i + 1]));
  return out;
}

}  // namespace
}  // namespace fiqa_fast::model

#define _mm512_set1_epi16 fiqa_fast::model::set1_epi16
#define _mm512_maddubs_epi16 fiqa_fast::model::maddubs_epi16
#define _mm512_madd_epi16 fiqa_fast::model::madd_epi16
#define _mm512_fmadd_ps fiqa_fast::model::fmadd_ps
#define _mm512_maskz_max_ps fiqa_fast::model::maskz_max_ps
#define _mm512_maskz_min_ps fiqa_fast::model::maskz_min_ps
#define _mm512_reduce_add_ps fiqa_fast::model::reduce_add_ps
#define _mm512_reduce_max_ps fiqa_fast::model::reduce_max_ps
#undef _mm512_reduce_ps  // as the one below
#define _mm512_reduce_ps fiqa_fast::model::reduce_ps
#define _mm512_scalef_ps fiqa_fast::model::scalef_ps
#define _mm512_maskz_cvtph_ps fiqa_fast::model::maskz_cvtph_ps
#undef _mm512_maskz_cvtps_ph  // a macro of its own where nothing is optimised
#define _mm512_maskz_cvtps_ph fiqa_fast::model::maskz_cvtps_ph
#define _mm512_movepi32_mask fiqa_fast::model::movepi32_mask
#define _mm512_loadu_si512 fiqa_fast::model::loadu_si512
#define _mm512_set1_epi32 fiqa_fast::model::set1_epi32

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
