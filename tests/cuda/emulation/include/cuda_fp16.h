// SPDX-License-Identifier: Apache-2.0
// What kernels use of float16, which they only store: its bits, widening and narrowing them.
#pragma once

#include <stdint.h>

#include "runtime/narrow.h"

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half value) { return emulation::widen_float16(value.bits); }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __float2half_rn(float value) { return {emulation::narrow_float16(value)}; }
