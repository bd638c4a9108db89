// SPDX-License-Identifier: Apache-2.0
// The number formats of products. Floats add up in float32, integers exactly.
#pragma once

#include "engine/tile.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// Sixteen sums of integers, kept where those of floats are.
struct Counts {
  Ints part[kParts];
};

FIQA_FAST_INLINE Counts load_counts(const float* from) {
  Counts out;
  for (int p = 0; p < kParts; ++p)
    out.part[p] = *reinterpret_cast<const IntsAnywhere*>(from + p * kWidth);
  return out;
}

FIQA_FAST_INLINE Vec floats(Counts value) {
  Vec out;
  for (int p = 0; p < kParts; ++p) out.part[p] = __builtin_convertvector(value.part[p], Floats);
  return out;
}

FIQA_FAST_INLINE Halves to_bfloat16(Floats value) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh(value);
#else
  return narrow_bfloat16(value);
#endif
}

struct Float32 {
  using Inner = Float32;      // of attention's products
  using Patch = Float32;      // what the patch embedding's weights are
  using Rows = Float32;       // left operands
  using WholeRows = Float32;  // the product for rows of whole numbers up to 256
  static constexpr bool kByRow = false;
  static constexpr int64_t kBytes = 4, kParts = 1;
  static constexpr int64_t kDepth = kLineBytes / kBytes;  // channels of a step
  // Sums begin at zero, and are added to the residual stream when they are complete: their
  // rounding errors are of their own size then.
  static constexpr bool kAddInPlace = false;

  FIQA_FAST_INLINE void put(char* to, int64_t, Vec value) {
    store(reinterpret_cast<float*>(to), value);
  }
};

#if defined(__AMX_BF16__)
struct SplitColumns;

// A float32 as two bfloat16, the second what the first leaves: sixteen bits of mantissa. Of the
// four products of two such numbers the one of both seconds is left out.
struct SplitFloat32 {
  using Inner = SplitFloat32;
  using Patch = SplitFloat32;
  using Rows = SplitFloat32;
  using WholeRows = SplitColumns;
  static constexpr bool kByRow = false;
  static constexpr int64_t kBytes = 2, kParts = 2;
  static constexpr int64_t kDepth = kLineBytes / kBytes;
  static constexpr bool kAddInPlace = false;

  FIQA_FAST_INLINE void put(char* to, int64_t part, Vec value) {
    for (int p = 0; p < fiqa_fast::FIQA_FAST_ISA::kParts; ++p) {
      const Halves first = to_bfloat16(value.part[p]);
      reinterpret_cast<HalvesAnywhere*>(to)[p] = first;
      reinterpret_cast<HalvesAnywhere*>(to + part)[p] =
          to_bfloat16(value.part[p] - widen_bfloat16(first));
    }
  }
};

#endif

// Where blocks are computed in less than float32, what the residual stream begins at is nearly
// that, and costs little beside them.
#if defined(__AMX_BF16__)
using FinePatch = SplitFloat32;
#else
using FinePatch = Float32;
#endif

#if defined(__AVX512BF16__)
struct Bfloat16 {
  using Inner = Bfloat16;
  using Patch = FinePatch;
  static constexpr bool kByRow = false;
  static constexpr int64_t kBytes = 2, kParts = 1;
  static constexpr int64_t kDepth = kLineBytes / kBytes;
  // Sums begin at what they are added to: float32's last place is nothing beside bfloat16's.
  static constexpr bool kAddInPlace = true;

  FIQA_FAST_INLINE void put(char* to, int64_t, Vec value) {
    for (int p = 0; p < fiqa_fast::FIQA_FAST_ISA::kParts; ++p)
      reinterpret_cast<HalvesAnywhere*>(to)[p] = to_bfloat16(value.part[p]);
  }
};

#endif

#if defined(__AMX_BF16__)
// Rows of bfloat16 with columns of SplitFloat32: what it computes where the rows' seconds are zero.
struct SplitColumns {
  using Rows = Bfloat16;
  static constexpr bool kByRow = false;
  static constexpr int64_t kParts = SplitFloat32::kParts;
};
#endif

// Bytes: a row's are 0 to 255 and a column's are signed, each with a unit of its own. Only whole
// rows can be put, because the largest number of a row decides its unit (see rows.h).
struct Int8 {
#if defined(__AVX512BF16__)
  using Inner = Bfloat16;
#else
  using Inner = Float32;
#endif
  using Patch = FinePatch;
  static constexpr bool kByRow = true;
  static constexpr int64_t kBytes = 1, kParts = 1;
  static constexpr int64_t kDepth = kLineBytes / kBytes;
  static constexpr bool kAddInPlace = false;
  // Where rows have both signs, this byte is zero.
  static constexpr int32_t kZero = 128;
#if defined(__AVX512VNNI__)
  static constexpr float kColumnTop = 127;
#else
  // The instruction adds two products in sixteen bits: 2 x 255 x 64 is the most that fits them.
  static constexpr float kColumnTop = 64;
#endif
};

template <class Number>
FIQA_FAST_INLINE int64_t steps(int64_t channels) {
  return parts_of(channels, Number::kDepth);
}

// Bytes of a tiled operand.
template <class Number>
FIQA_FAST_INLINE int64_t tiled_bytes(int64_t rows, int64_t channels) {
  return tiles(rows) * steps<Number>(channels) * Number::kParts * kTileBytes;
}

// An operand of whole tiles, one after the other: [tiles][steps][parts][16][64 bytes].
template <class Number>
FIQA_FAST_INLINE Operand tiled(const char* data, int64_t step_count) {
  constexpr int64_t kStep = Number::kParts * kTileBytes;
  return {data, step_count * kStep, kStep, kTileBytes};
}

// Where channel `channel`, a multiple of sixteen, of row `row` is in a tiled left operand.
template <class Number>
FIQA_FAST_INLINE char* place(char* data, int64_t step_count, int64_t row, int64_t channel) {
  const int64_t tile = row / kSide * step_count + channel / Number::kDepth;
  return data + tile * Number::kParts * kTileBytes + row % kSide * kLineBytes +
         channel % Number::kDepth * Number::kBytes;
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
