// SPDX-License-Identifier: Apache-2.0
// A weight as the right operand of a product: its rows [columns][channels], packed once. Behind the
// tiles of integers stand the units of the columns and what their sums begin at.
#pragma once

#include "engine/rows.h"

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

// Sixteen rows of 64 bytes, those from `count` on taken as zero, to a tile of columns.
FIQA_FAST_INLINE void turn_tile(const char* rows, int64_t line, int64_t count, char* to) {
  Vec square[kLanes];
  for (int64_t i = 0; i < kLanes; ++i)
    square[i] = i < count ? load(reinterpret_cast<const float*>(rows + i * line)) : broadcast(0);
  transpose(square);
  for (int64_t i = 0; i < kLanes; ++i)
    store(reinterpret_cast<float*>(to + i * kLineBytes), square[i]);
}

// Values `channel` to `channel` + 15 of some; zeros behind the last.
FIQA_FAST_INLINE Vec load_lanes(const float* values, int64_t channel, int64_t channels) {
  const int64_t left = channels - channel;
  if (left >= kLanes) return load(values + channel);
  return left > 0 ? load_some(values + channel, 1, left) : broadcast(0);
}

// Whole numbers up to Int8::kColumnTop in size, of one unit, and their sum.
struct ByteColumn {
  float unit = 0, factor = 0;
  int32_t sum = 0;

  ByteColumn() = default;
  ByteColumn(const float* weight, int64_t channels) {
    Largest seen;
    for (int64_t c = 0; c < channels; c += kLanes) seen.see(load_lanes(weight, c, channels));
    const float top = seen.size();  // a NaN stays
    unit = top / Int8::kColumnTop;
    factor = top > 0 ? Int8::kColumnTop / top : 0;
  }

  // The word of a line that has channels c, c + 16, c + 32 and c + 48, for sixteen c.
  void put(const float* weight, int64_t channel, int64_t channels, char* line) {
    // To nearest, ties to even, in the lowest bits of the mantissa: see put_bytes().
    const Vec round = broadcast(12582912.0f), top = broadcast(Int8::kColumnTop + 0.5f);
    Ints sums[kParts] = {};
    Words words[kParts] = {};
    for (uint32_t byte = 0; byte < 4; ++byte) {
      const Vec scaled = load_lanes(weight, channel + byte * kLanes, channels) * broadcast(factor);
      const Vec rounded = scaled + round;
      for (int p = 0; p < kParts; ++p) {
        // What is not a number makes the unit one, too. The largest may come out a little above.
        const Ints fits = (scaled.part[p] < top.part[p]) & (scaled.part[p] > -top.part[p]);
        const Ints whole = ((Ints)rounded.part[p] - (Ints)round.part[p]) & fits;
        sums[p] += whole;
        words[p] |= ((Words)whole & 0xffu) << 8 * byte;
      }
    }
    for (int p = 0; p < kParts; ++p) {
      for (int i = 0; i < kWidth; ++i) sum += sums[p][i];
      reinterpret_cast<IntsAnywhere*>(line)[p] = (Ints)words[p];
    }
  }
};

// `has_zero`: the rows' bytes are relative to Int8::kZero. `sums`, of each packed column in the
// weight's own measure, or null. `slice`: channels at a time, of whole steps; 0 for all.
template <class Number>
FIQA_FAST_INLINE void pack_columns(const float* weight, int64_t columns, int64_t channels, char* to,
                                   [[maybe_unused]] bool has_zero, [[maybe_unused]] float* sums,
                                   int64_t slice) {
  const int64_t step_count = steps<Number>(channels), column_tiles = tiles(columns);
  const Slices slices{step_count, column_tiles, slice == 0 ? step_count : steps<Number>(slice)};
  [[maybe_unused]] const Operand packed = packed_columns<Number>(to, column_tiles, step_count);
  for (int64_t tile = 0; tile < column_tiles; ++tile) {
    const int64_t first = tile * kSide, left = columns - first, count = left < kSide ? left : kSide;
    // Lines of sixteen columns, part after part, put(column, channel, line) by put().
    const auto turned = [&](auto put) {
      for (int64_t step = 0; step < step_count; ++step) {
        alignas(64) char lines[Number::kParts * kTileBytes];
        for (int64_t column = 0; column < count; ++column)
          put(column, step * Number::kDepth, lines + column * kLineBytes);
        char* place = to + slices.tile(tile, step) * Number::kParts * kTileBytes;
        for (int64_t part = 0; part < Number::kParts; ++part)
          turn_tile(lines + part * kTileBytes, kLineBytes, count, place + part * kTileBytes);
      }
    };
    if constexpr (Number::kByRow) {
      float* units = const_cast<float*>(packed.units) + first;
      int32_t* begin = const_cast<int32_t*>(packed.begin) + first;
      ByteColumn bytes[kSide];
      for (int64_t column = 0; column < count; ++column)
        bytes[column] = ByteColumn(weight + (first + column) * channels, channels);
      turned([&](int64_t column, int64_t channel, char* line) {
        bytes[column].put(weight + (first + column) * channels, channel, channels, line);
      });
      for (int64_t column = 0; column < kSide; ++column) {
        const ByteColumn& of = bytes[column];
        units[column] = of.unit;
        begin[column] = has_zero ? -Int8::kZero * of.sum : 0;
        if (sums != nullptr && column < count)
          sums[first + column] = static_cast<float>(of.sum) * of.unit;
      }
    } else {
      turned([&](int64_t column, int64_t channel, char* line) {
        const float* from = weight + (first + column) * channels;
        for (int64_t c = 0; c < Number::kDepth; c += kLanes)
          Number::put(line + c * Number::kBytes, kTileBytes,
                      load_lanes(from, channel + c, channels));
      });
    }
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
