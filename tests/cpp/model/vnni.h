// SPDX-License-Identifier: Apache-2.0
// VPDPBUSD, of registers of any width: unsigned bytes times signed ones.
#pragma once

#include <immintrin.h>

#include "model/elements.h"

namespace fiqa_fast::model {
namespace {

template <class Register>
inline Register dpbusd_epi32(Register sum, Register a, Register b) {
  constexpr int kWords = sizeof(Register) / 4;
  const Elements<int32_t, kWords> from(sum);
  const Elements<uint32_t, kWords> x(a), y(b);
  Elements<int32_t, kWords> out;
  for (int i = 0; i < kWords; ++i)
    out.at[i] = add_byte_products<false, true>(from.at[i], x.at[i], y.at[i]);
  return out;
}

}  // namespace
}  // namespace fiqa_fast::model
