// SPDX-License-Identifier: Apache-2.0
// As avx512.h, with AVX512_VNNI.
#pragma once

#include "model/avx512.h"
#include "model/vnni.h"

#define _mm512_dpbusd_epi32 fiqa_fast::model::dpbusd_epi32<__m512i>
#undef _mm256_dpbusd_epi32  // a macro of its own in GCC
#define _mm256_dpbusd_epi32 fiqa_fast::model::dpbusd_epi32<__m256i>

#define __AVX512VNNI__ 1
