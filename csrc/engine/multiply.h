// SPDX-License-Identifier: Apache-2.0
// The innermost product: up to two tiles of rows times up to two tiles of columns. Whatever the
// instructions, a result's terms are added in the order of the channels, so it does not depend on
// the rows and columns beside it.
#pragma once

#include "engine/meanwhile.h"
#include "engine/multiply_vectors.h"

#if defined(__AMX_BF16__)
#include "engine/multiply_amx.h"
#endif

namespace fiqa_fast::FIQA_FAST_ISA {

// Whether a tile unit multiplies such numbers.
template <class Number>
constexpr bool kByTiles = false;
#if defined(__AMX_BF16__)
template <>
constexpr bool kByTiles<SplitFloat32> = true;
template <>
constexpr bool kByTiles<SplitColumns> = true;
template <>
constexpr bool kByTiles<Bfloat16> = true;
template <>
constexpr bool kByTiles<Int8> = true;
#endif

// About the fewest rows of a band of those that threads share (team.h): each band reads all
// weights, which shows where there is less to do with them. A tile unit, which is done with them
// sooner, shares its products by columns alone; bands were not measured there.
template <class Number>
constexpr int64_t kBandRows = kByTiles<Number> ? INT64_MAX : 64;

// Up to 32 of `rows` rows; a few behind the last may be computed as well. c becomes the product or,
// with kAdd, grows by it. `beside`: what is done meanwhile.
template <class Number, bool kAdd, class Beside>
FIQA_FAST_INLINE void multiply(int64_t rows, bool two_columns, const Operand& a, const Operand& b,
                               int64_t step_count, float* c, int64_t stride, Beside& beside) {
  // Always inlined, as the cuts of rows are: elsewhere `beside` would be kept in memory, and all of
  // it be 0.94 to 0.97 times as fast.
  const auto product = [&]<int kRowTiles, int kColumnTiles>() __attribute__((always_inline)) {
#if defined(__AMX_BF16__)
    if constexpr (kByTiles<Number>)
      return multiply_by_tiles<Number, kAdd, kRowTiles, kColumnTiles>(a, b, step_count, c, stride,
                                                                      beside);
    else
#endif
      multiply_by_vectors<Number, kAdd, kRowTiles, kColumnTiles>(rows, a, b, step_count, c, stride,
                                                                 beside);
  };
  const bool two_rows = rows > kSide;
  if (two_rows && two_columns)
    product.template operator()<2, 2>();
  else if (two_rows)
    product.template operator()<2, 1>();
  else if (two_columns)
    product.template operator()<1, 2>();
  else
    product.template operator()<1, 1>();
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
