// SPDX-License-Identifier: Apache-2.0
// Products of whole matrices. Two tiles of columns are a panel, which stays in the first caches
// while a band of rows passes it; panels are what threads share.
#pragma once

#include "engine/columns.h"
#include "engine/meanwhile.h"
#include "engine/multiply.h"
#include "engine/rows.h"
#include "engine/team.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// A row of 32 sums as floats: value(i) is its sums i to i + 15.
template <class Number>
struct RowOfSums {
  const float* data;
  Vec unit;            // of the row
  const float* units;  // of the columns

  __attribute__((always_inline)) Vec operator()(int64_t i) const {
    if constexpr (Number::kByRow)
      return floats(load_counts(data + i)) * (unit * load(units + i));
    else
      return load(data + i);
  }
};

// The two tiles of columns at `next`, or null, are there when so many rows and tiles of columns
// have been multiplied.
template <class Number>
FIQA_FAST_INLINE Coming coming_panel(const char* next, int64_t rows, int64_t column_tiles) {
  const int64_t lines = 2 * Number::kParts * kTileBytes / kLineBytes;
  return {next, next == nullptr ? 0 : lines, rows * column_tiles};
}

// One panel of columns with a band of rows: done(row, column, width, value) for each row and up to
// 32 columns. `after` is what will be read next, or null.
template <class Number, class Done>
FIQA_FAST_INLINE void product_panel(const Operand& a, const Band& band, const Operand& b,
                                    int64_t column_tiles, int64_t step_count, int64_t panel,
                                    const char* after, Done done) {
  const int64_t tile = 2 * panel;
  const bool two = tile + 1 < column_tiles;
  const Operand columns = moved(b, tile);
  const char* next = tile + 2 < column_tiles ? moved(b, tile + 2).data : after;
  const auto row_done = [&](int64_t row, const float* sums) {
    RowOfSums<Number> value{sums, {}, columns.units};
    if constexpr (Number::kByRow) value.unit = broadcast(a.units[row]);
    if (two)
      done(row, tile * kSide, 32, value);
    else
      done(row, tile * kSide, 16, value);
  };
  SumBlock sums[2];  // by turns
  sums[1].rows = 0;
  Meanwhile<decltype(row_done)> meanwhile{coming_panel<Number>(next, band.rows(), two ? 2 : 1),
                                          &sums[1], 0, parts_of(32, step_count), row_done};
  for (int64_t row = band.begin, turn = 0; row < band.end; row += 2 * kSide, turn ^= 1) {
    SumBlock& now = sums[turn];
    now.row = row, now.rows = band.end - row < 2 * kSide ? band.end - row : 2 * kSide;
    multiply<Number, false>(now.rows, two, moved(a, row / kSide), columns, step_count, now.data, 32,
                            meanwhile);
    meanwhile.finish(meanwhile.sums->rows);
    meanwhile.sums = &now, meanwhile.finished = 0;
  }
  meanwhile.finish(meanwhile.sums->rows);
}

template <class Number, class Done>
FIQA_FAST_INLINE void product(Member& member, const Band& band, const Operand& a, const Operand& b,
                              int64_t column_tiles, int64_t step_count, const char* after,
                              Done done) {
  member.share(parts_of(column_tiles, 2), [&](int64_t panel) {
    product_panel<Number>(a, band, b, column_tiles, step_count, panel, after, done);
  });
}

// c += the product; c has rows of `stride` floats.
template <class Number>
FIQA_FAST_INLINE void accumulate(Member& member, const Band& band, const Operand& a,
                                 const Operand& b, int64_t column_tiles, int64_t step_count,
                                 const char* after, float* c, int64_t stride) {
  if constexpr (Number::kAddInPlace) {
    member.share(parts_of(column_tiles, 2), [&](int64_t panel) {
      const int64_t tile = 2 * panel;
      const bool two = tile + 1 < column_tiles;
      const char* next = tile + 2 < column_tiles ? moved(b, tile + 2).data : after;
      // Instead of sums to be finished: the rows of c that come next, to be fetched.
      SumBlock soon;
      const auto fetch = [&](int64_t row, const float*) {
        const float* line = c + row * stride + tile * kSide;
        __builtin_prefetch(line, 1), __builtin_prefetch(line + kSide, 1);
      };
      Meanwhile<decltype(fetch)> meanwhile{coming_panel<Number>(next, band.rows(), two ? 2 : 1),
                                           &soon, 0, parts_of(32, step_count), fetch};
      for (int64_t row = band.begin; row < band.end; row += 2 * kSide) {
        soon.row = row + 2 * kSide;
        soon.rows = band.end - soon.row < 2 * kSide ? band.end - soon.row : 2 * kSide;
        meanwhile.finished = 0;
        multiply<Number, true>(band.end - row, two, moved(a, row / kSide), moved(b, tile),
                               step_count, c + row * stride + tile * kSide, stride, meanwhile);
      }
    });
  } else {
    product<Number>(member, band, a, b, column_tiles, step_count, after,
                    [&](int64_t row, int64_t column, int64_t width, const auto& value) {
                      float* to = c + row * stride + column;
                      // A row that comes soon, to be fetched; not one of another band.
                      const float* soon = row + 8 < band.end ? to + 8 * stride : to;
                      __builtin_prefetch(soon, 1), __builtin_prefetch(soon + kSide, 1);
                      for (int64_t i = 0; i < width; i += kLanes)
                        store(to + i, load(to + i) + value(i));
                    });
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
