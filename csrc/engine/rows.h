// SPDX-License-Identifier: Apache-2.0
// Rows as the left operand of a product. Floats are put where they belong as they come. Bytes need
// the whole row first: its largest number decides what a byte is worth.
#pragma once

#include "engine/number.h"

namespace fiqa_fast::FIQA_FAST_ISA {

FIQA_FAST_INLINE float total(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(value.part[0]);
#else
  return sum(value);
#endif
}

FIQA_FAST_INLINE float greatest(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(value.part[0]);
#else
  float lanes[kLanes];
  store(lanes, value);
  float top = lanes[0];
  for (int64_t i = 1; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
  return top;
#endif
}

// of(0), of(16), .. below `count`, added up in two chains: one alone would wait for itself.
template <class Of>
FIQA_FAST_INLINE Vec sum_of(int64_t count, Vec begin, Of of) {
  Vec even = begin, odd = broadcast(0);
  int64_t c = 0;
  for (; c + kLanes < count; c += 2 * kLanes) even = even + of(c), odd = odd + of(c + kLanes);
  if (c < count) even = even + of(c);
  return even + odd;
}

// The tiles of up to `rows` rows, and behind those of bytes the unit of each row.
template <class Number>
FIQA_FAST_INLINE int64_t row_bytes(int64_t rows, int64_t channels) {
  return tiled_bytes<Number>(rows, channels) + (Number::kByRow ? tiles(rows) * kSide * 4 : 0);
}

template <class Number>
FIQA_FAST_INLINE Operand packed_rows(const char* data, int64_t rows, int64_t step_count) {
  Operand operand = tiled<Number>(data, step_count);
  if constexpr (Number::kByRow)
    operand.units = reinterpret_cast<const float*>(data + tiles(rows) * operand.tile);
  return operand;
}

// Floats on their way to whole rows of bytes: [rows][stride], for formats that need it.
template <class Number>
FIQA_FAST_INLINE int64_t float_row_bytes(int64_t rows, int64_t stride) {
  return Number::kByRow ? rows * stride * 4 : 0;
}

// Where a line of floats is longer than the channels, so that rows do not share their places in the
// cache.
FIQA_FAST_INLINE int64_t float_stride(int64_t channels) { return tiles(channels) * kSide + kSide; }

// The largest size of some numbers, seen as whole ones: bits of sizes are in the order of the
// sizes, and what is no finite number has the largest.
struct Largest {
  Ints bits[kParts] = {};

  __attribute__((always_inline)) void see(Vec value) {
    for (int p = 0; p < kParts; ++p) {
      const Ints size = (Ints)value.part[p] & 0x7fffffff;
      bits[p] = size > bits[p] ? size : bits[p];
    }
  }
  // A NaN where one of them was not finite.
  __attribute__((always_inline)) float size() const {
    Vec sizes;
    for (int p = 0; p < kParts; ++p) sizes.part[p] = (Floats)bits[p];
    return greatest(sizes) + total(sizes * broadcast(0));
  }
};

// A row of floats, of whole vectors, to bytes: those of numbers that have both signs are relative
// to Int8::kZero. The bytes of a word are sixteen channels apart, as vectors come, in the columns
// as well. What is not finite makes the row's unit a NaN.
FIQA_FAST_INLINE void put_bytes(const float* from, int64_t channels, bool has_zero,
                                const Operand& to, int64_t row) {
  Largest seen;
  for (int64_t c = 0; c < channels; c += kLanes) seen.see(load(from + c));
  const float largest = seen.size(), steps_up = has_zero ? 127 : 255;
  const_cast<float*>(to.units)[row] = largest / steps_up;
  const Vec factor = broadcast(largest > 0 ? steps_up / largest : 0);
  // Adding this rounds to a whole number, to nearest and ties to even, and leaves it in the lowest
  // bits of the mantissa.
  const Vec round = broadcast(12582912.0f + (has_zero ? Int8::kZero : 0));
  char* line = const_cast<char*>(to.data) + row / kSide * to.tile + row % kSide * kLineBytes;
  const auto byte = [&](int64_t c, int64_t p) {
    return (Words)fma(load(from + c), factor, round).part[p] & 0xffu;
  };
  int64_t c = 0;
  for (; c + Int8::kDepth <= channels; c += Int8::kDepth, line += to.step)
    for (int p = 0; p < kParts; ++p)
      reinterpret_cast<IntsAnywhere*>(line)[p] =
          (Ints)(byte(c, p) | byte(c + kSide, p) << 8u | byte(c + 2 * kSide, p) << 16u |
                 byte(c + 3 * kSide, p) << 24u);
  if (c == channels) return;
  for (int p = 0; p < kParts; ++p) {
    Words words = {};
    for (int64_t i = 0; c + i < channels; i += kSide)
      words |= byte(c + i, p) << static_cast<uint32_t>(i / kSide * 8);
    reinterpret_cast<IntsAnywhere*>(line)[p] = (Ints)words;
  }
}

// Puts rows into a left operand, one after the other: put() for all channels of a row, then end().
// `line`, for formats that need it, is memory for one row of floats.
template <class Number>
struct RowWriter {
  Operand to;
  bool has_zero;  // the numbers have both signs
  float* line;

  __attribute__((always_inline)) void put(int64_t row, int64_t channel, Vec value) {
    if constexpr (Number::kByRow) {
      store(line + channel, value);
    } else {
      char* tile =
          const_cast<char*>(to.data) + row / kSide * to.tile + channel / Number::kDepth * to.step;
      Number::put(tile + row % kSide * kLineBytes + channel % Number::kDepth * Number::kBytes,
                  kTileBytes, value);
    }
  }
  __attribute__((always_inline)) void end([[maybe_unused]] int64_t row,
                                          [[maybe_unused]] int64_t channels) {
    if constexpr (Number::kByRow) put_bytes(line, channels, has_zero, to, row);
  }
};

}  // namespace fiqa_fast::FIQA_FAST_ISA
