// SPDX-License-Identifier: Apache-2.0
#include "intrinsics.h"

#include <immintrin.h>
#include <string.h>

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

template <class Register, class Element>
inline Register load(const Element* from) {
  Register out;
  memcpy(&out, from, sizeof out);
  return out;
}

template <class Register, class Element>
inline void store(Element* to, const Register& value) {
  memcpy(to, &value, sizeof value);
}

void fmadd(const float* a, const float* b, const float* c, float* out) {
  store(out, _mm512_fmadd_ps(load<__m512>(a), load<__m512>(b), load<__m512>(c)));
}

void max(uint32_t mask, const float* a, const float* b, float* out) {
  store(out, _mm512_maskz_max_ps(static_cast<__mmask16>(mask), load<__m512>(a), load<__m512>(b)));
}

void min(uint32_t mask, const float* a, const float* b, float* out) {
  store(out, _mm512_maskz_min_ps(static_cast<__mmask16>(mask), load<__m512>(a), load<__m512>(b)));
}

float reduce_add(const float* from) { return _mm512_reduce_add_ps(load<__m512>(from)); }
float reduce_max(const float* from) { return _mm512_reduce_max_ps(load<__m512>(from)); }

void rest(const float* from, float* out) {
  store(out, _mm512_reduce_ps(load<__m512>(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

void scale(const float* a, const float* b, float* out) {
  store(out, _mm512_scalef_ps(load<__m512>(a), load<__m512>(b)));
}

void from_half(uint32_t mask, const uint16_t* from, float* out) {
  store(out, _mm512_maskz_cvtph_ps(static_cast<__mmask16>(mask), load<__m256i>(from)));
}

void to_half(uint32_t mask, const float* from, uint16_t* out) {
  store(out, _mm512_maskz_cvtps_ph(static_cast<__mmask16>(mask), load<__m512>(from),
                                   _MM_FROUND_TO_NEAREST_INT));
}

uint32_t signs(const float* from) { return _mm512_movepi32_mask(load<__m512i>(from)); }

void set(int32_t value, int32_t* out) { store(out, _mm512_set1_epi32(value)); }

void to_bfloat16(const float* from, uint16_t* out) {
  store(out, _mm512_cvtneps_pbh(load<__m512>(from)));
}

void add_bfloat16(const float* sum, const uint32_t* a, const uint32_t* b, float* out) {
  store(out, _mm512_dpbf16_ps(load<__m512>(sum), load<__m512bh>(a), load<__m512bh>(b)));
}

void add_bytes(const int32_t* sum, const uint32_t* a, const uint32_t* b, int32_t* out) {
  store(out, _mm512_dpbusd_epi32(load<__m512i>(sum), _mm512_loadu_si512(a), load<__m512i>(b)));
}

void add_bytes_256(const int32_t* sum, const uint32_t* a, const uint32_t* b, int32_t* out) {
  store(out, _mm256_dpbusd_epi32(load<__m256i>(sum), load<__m256i>(a), load<__m256i>(b)));
}

void add_bytes_avx(const int32_t* sum, const uint32_t* a, const uint32_t* b, int32_t* out) {
  store(out, _mm256_dpbusd_avx_epi32(load<__m256i>(sum), load<__m256i>(a), load<__m256i>(b)));
}

}  // namespace

const Intrinsics intrinsics = {
    fmadd,   max,   min, reduce_add,  reduce_max,   rest,      scale,         from_half,
    to_half, signs, set, to_bfloat16, add_bfloat16, add_bytes, add_bytes_256, add_bytes_avx};

}  // namespace fiqa_fast::FIQA_FAST_ISA
