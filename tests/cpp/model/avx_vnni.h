// SPDX-License-Identifier: Apache-2.0
// Included before a kernel file that is compiled for AVX2: adds AVX-VNNI.
#pragma once

#include "model/vnni.h"

#define _mm256_dpbusd_avx_epi32 fiqa_fast::model::dpbusd_epi32<__m256i>

#define __AVXVNNI__ 1
