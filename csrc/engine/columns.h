// SPDX-License-Identifier: Apache-2.0
// A weight as the right operand of a product: its rows [columns][channels], packed once. Behind the
// tiles of integers stand the units of the columns and what their sums begin at.
#pragma once

#include "engine/number.h"

namespace fiqa_fast::FIQA_FAST_ISA {

template <class Number>
FIQA_FAST_INLINE int64_t column_bytes(int64_t columns, int64_t channels) {
  const int64_t extra = Number::kByRow ? tiles(columns) * kSide * (4 + 4) : 0;
  return tiled_bytes<Number>(columns, channels) + extra;
}

template <class Number>
FIQA_FAST_INLINE Operand packed_columns(const char* data, int64_t column_tiles,
                                        int64_t step_count) {
  Operand columns = tiled<Number>(data, step_count);
  if constexpr (Number::kByRow) {
    columns.units = reinterpret_cast<const float*>(data + column_tiles * columns.tile);
    columns.begin = reinterpret_cast<const int32_t*>(columns.units + column_tiles * kSide);
  }
  return columns;
}

// How the steps of a right operand are laid out: so many at a time for all columns, because a
// product takes no more of them at once, and reads what lies together faster.
struct Slices {
  int64_t step_count, column_tiles, steps;

  int64_t steps_of(int64_t slice) const {
    const int64_t left = step_count - slice * steps;
    return left < steps ? left : steps;
  }
  // Which of the tiles has the step of a tile of columns.
  int64_t tile(int64_t column_tile, int64_t step) const {
    const int64_t slice = step / steps;
    return slice * steps * column_tiles + column_tile * steps_of(slice) + step % steps;
  }
};

// A slice, as an operand of its own.
template <class Number>
FIQA_FAST_INLINE Operand slice_of(Operand columns, const Slices& slices, int64_t slice) {
  columns.data += slices.tile(0, slice * slices.steps) * columns.step;
  columns.tile = slices.steps_of(slice) * columns.step;
  return columns;
}

// Where a column's word `word` of step `step` is, in a tiled right operand.
template <class Number>
FIQA_FAST_INLINE char* word_place(char* data, const Slices& slices, int64_t column, int64_t step,
                                  int64_t word) {
  const int64_t tile = slices.tile(column / kSide, step);
  return data + tile * Number::kParts * kTileBytes + word * kLineBytes + column % kSide * 4;
}

// `has_zero`: the rows' bytes are relative to Int8::kZero. `sums`, of each packed column in the
// weight's own measure, or null. `slice`: channels at a time, of whole steps; 0 for all.
template <class Number>
FIQA_FAST_INLINE void pack_columns(const float* weight, int64_t columns, int64_t channels, char* to,
                                   [[maybe_unused]] bool has_zero, [[maybe_unused]] float* sums,
                                   int64_t slice) {
  const int64_t step_count = steps<Number>(channels);
  const Slices slices{step_count, tiles(columns), slice == 0 ? step_count : steps<Number>(slice)};
  memset(to, 0, static_cast<size_t>(column_bytes<Number>(columns, channels)));
  if constexpr (Number::kByRow) {
    const Operand packed = packed_columns<Number>(to, tiles(columns), step_count);
    float* units = const_cast<float*>(packed.units);
    int32_t* begin = const_cast<int32_t*>(packed.begin);
    for (int64_t column = 0; column < columns; ++column) {
      const float* from = weight + column * channels;
      float top = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const float size = __builtin_fabsf(from[c]);
        if (!(size <= top)) top = size;  // a NaN stays
      }
      units[column] = top / Number::kColumnTop;
      const float factor = top > 0 ? Number::kColumnTop / top : 0;
      int32_t sum = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const float scaled = from[c] * factor;
        // What is not a number makes the unit one, too. The largest may come out a little above.
        const int32_t whole = __builtin_fabsf(scaled) < Number::kColumnTop + 0.5f
                                  ? static_cast<int32_t>(__builtin_rintf(scaled))
                                  : 0;
        sum += whole;
        word_place<Number>(to, slices, column, c / Number::kDepth,
                           c % kSide)[c % Number::kDepth / kSide] = static_cast<char>(whole);
      }
      begin[column] = has_zero ? -Number::kZero * sum : 0;
      if (sums != nullptr) sums[column] = static_cast<float>(sum) * units[column];
    }
  } else {
    constexpr int64_t kWord = 4 / Number::kBytes;  // numbers in a word
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t channel = 0; channel < channels; channel += kLanes) {
        const int64_t left = channels - channel < kLanes ? channels - channel : kLanes;
        alignas(64) char lanes[2 * kLineBytes];
        Number::put(lanes, kLineBytes, load_some(weight + column * channels + channel, 1, left));
        char* line = word_place<Number>(to, slices, column, channel / Number::kDepth,
                                        channel % Number::kDepth / kWord);
        for (int64_t part = 0; part < Number::kParts; ++part)
          for (int64_t word = 0; word < kLanes / kWord; ++word)
            memcpy(line + part * kTileBytes + word * kLineBytes,
                   lanes + part * kLineBytes + word * 4, 4);
      }
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
