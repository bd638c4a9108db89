// SPDX-License-Identifier: Apache-2.0
// The number formats of products. All of them add up in float32.
#pragma once

#include "engine/tile.h"

namespace fiqa_fast::FIQA_FAST_ISA {

FIQA_FAST_INLINE Halves to_bfloat16(Floats value) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh(value);
#else
  return narrow_bfloat16(value);
#endif
}

struct Float32 {
  static constexpr int64_t kBytes = 4, kParts = 1;
  static constexpr int64_t kDepth = kLineBytes / kBytes;  // channels of a step
  // Sums begin at zero, and are added to the residual stream when they are complete: their
  // rounding errors are of their own size then.
  static constexpr bool kAddInPlace = false;

  FIQA_FAST_INLINE void put(char* to, int64_t, Vec value) {
    store(reinterpret_cast<float*>(to), value);
  }
};

struct Bfloat16 {
  static constexpr int64_t kBytes = 2, kParts = 1;
  static constexpr int64_t kDepth = kLineBytes / kBytes;
  // Sums begin at what they are added to: float32's last place is nothing beside bfloat16's.
  static constexpr bool kAddInPlace = true;

  FIQA_FAST_INLINE void put(char* to, int64_t, Vec value) {
    for (int p = 0; p < fiqa_fast::FIQA_FAST_ISA::kParts; ++p)
      reinterpret_cast<HalvesAnywhere*>(to)[p] = to_bfloat16(value.part[p]);
  }
};

// A float32 as two bfloat16, the second what the first leaves: sixteen bits of mantissa. Of the
// four products of two such numbers the one of both seconds is left out.
struct SplitFloat32 {
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

template <class Number>
FIQA_FAST_INLINE int64_t steps(int64_t channels) {
  return parts_of(channels, Number::kDepth);
}

// An operand of whole tiles, one after the other: [tiles][steps][parts][16][64 bytes].
template <class Number>
FIQA_FAST_INLINE Operand tiled(const char* data, int64_t step_count) {
  constexpr int64_t kStep = Number::kParts * kTileBytes;
  return {data, step_count * kStep, kStep, kLineBytes, kTileBytes};
}

// Where channel `channel`, a multiple of sixteen, of row `row` is in a tiled left operand.
template <class Number>
FIQA_FAST_INLINE char* place(char* data, int64_t step_count, int64_t row, int64_t channel) {
  const int64_t tile = row / kSide * step_count + channel / Number::kDepth;
  return data + tile * Number::kParts * kTileBytes + row % kSide * kLineBytes +
         channel % Number::kDepth * Number::kBytes;
}

// Bytes of a tiled operand.
template <class Number>
FIQA_FAST_INLINE int64_t tiled_bytes(int64_t rows, int64_t channels) {
  return tiles(rows) * steps<Number>(channels) * Number::kParts * kTileBytes;
}

// A weight's rows [columns][channels], float32, to a tiled right operand; the rest is zero.
template <class Number>
FIQA_FAST_INLINE void pack_columns(const float* weight, int64_t columns, int64_t channels,
                                   char* to) {
  const int64_t step_count = steps<Number>(channels);
  constexpr int64_t kWord = 4 / Number::kBytes;  // numbers in a word
  memset(to, 0, tiled_bytes<Number>(columns, channels));
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      const int64_t left = channels - channel < kLanes ? channels - channel : kLanes;
      alignas(64) char lanes[2 * kLineBytes];
      Number::put(lanes, kLineBytes, load_some(weight + column * channels + channel, 1, left));
      const int64_t tile = column / kSide * step_count + channel / Number::kDepth;
      char* line = to + tile * Number::kParts * kTileBytes + column % kSide * 4 +
                   channel % Number::kDepth / kWord * kLineBytes;
      for (int64_t part = 0; part < Number::kParts; ++part)
        for (int64_t word = 0; word < kLanes / kWord; ++word)
          memcpy(line + part * kTileBytes + word * kLineBytes, lanes + part * kLineBytes + word * 4,
                 4);
    }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
