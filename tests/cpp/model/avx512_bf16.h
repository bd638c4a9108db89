// SPDX-License-Identifier: Apache-2.0
// As avx512.h, with AVX512_BF16.
#pragma once

#include "model/avx512.h"

namespace fiqa_fast::model {
namespace {

inline __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  const Floats from(sum);
  const Elements<uint32_t, 16> x(a), y(b);
  Floats out;
  for (int i = 0; i < 16; ++i) out.at[i] = add_bfloat16_pairs(from.at[i], x.at[i], y.at[i]);
  return out;
}

inline __m256bh cvtneps_pbh(__m512 value) {
  const Floats from(value);
  Elements<uint16_t, 16> out;
  for (int i = 0; i < 16; ++i) out.at[i] = bfloat16_of(from.at[i]);
  return out;
}

}  // namespace
}  // namespace fiqa_fast::model

#define _mm512_dpbf16_ps fiqa_fast::model::dpbf16_ps
#define _mm512_cvtneps_pbh fiqa_fast::model::cvtneps_pbh

#define __AVX512BF16__ 1
