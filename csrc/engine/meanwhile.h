// SPDX-License-Identifier: Apache-2.0
// What is done beside a product, step by step. A step here is what a tile unit takes at a time: two
// tiles of rows with two tiles of columns.
#pragma once

#include "engine/number.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// The weights that are read next, fetched line by line: many at once would hold up what the product
// itself reads (bit by bit was 1.01 to 1.03 times as fast, on an EPYC with AVX-512).
struct Coming {
  const char* next = nullptr;
  int64_t lines = 0;  // for every step
  int64_t due = 0;    // what is left of them, in parts of a step: a row with a tile of columns each

  __attribute__((always_inline)) void fetch_some() {
    for (int64_t i = 0; i < lines; ++i, next += kLineBytes) __builtin_prefetch(next, 0, 2);
  }
  // How many to fetch beside so many rows and tiles of columns instead.
  __attribute__((always_inline)) int64_t lines_beside(int64_t rows, int64_t column_tiles) {
    constexpr int64_t kParts = 2 * kSide * 2;
    due += lines * rows * column_tiles;
    const int64_t count = due / kParts;
    due -= count * kParts;
    return count;
  }
};

// Nothing to do.
struct Idle {
  Coming coming;
  FIQA_FAST_INLINE void finish_some() {}
};

// A block of up to 32 x 32 sums, rows of 32 floats.
struct Sums {
  alignas(64) float data[32 * 32];
  int64_t row, rows;
};

// The weights that come next are fetched, and the sums of the product before are finished, row by
// row: done(row, sums).
template <class Done>
struct Meanwhile {
  Coming coming;
  Sums* sums;        // of the product before
  int64_t finished;  // of its rows
  int64_t quota;     // of rows for every step
  const Done& done;

  __attribute__((always_inline)) void finish(int64_t until) {
    for (; finished < until; ++finished) done(sums->row + finished, sums->data + finished * 32);
  }
  __attribute__((always_inline)) void finish_some() {
    const int64_t until = finished + quota;
    finish(until < sums->rows ? until : sums->rows);
  }
};

}  // namespace fiqa_fast::FIQA_FAST_ISA
