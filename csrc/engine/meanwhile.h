// SPDX-License-Identifier: Apache-2.0
// What is done beside a product, between its steps.
#pragma once

#include "engine/tile.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// The weights that are read behind a product's own, fetched evenly beside it: many lines at once
// would hold up what it reads itself (evenly was 1.01 to 1.03 times as fast, on an EPYC with
// AVX-512).
struct Coming {
  const char* next = nullptr;
  int64_t lines = 0;  // for a step of all rows and columns of the product
  int64_t among = 1;  // rows times tiles of columns, which share them
  int64_t due = 0;    // what is left of the last share, in parts of a line: so many as `among`

  // How many of them so many rows and tiles of columns should fetch.
  __attribute__((always_inline)) int64_t share(int64_t rows, int64_t column_tiles) {
    due += lines * rows * column_tiles;
    const int64_t count = due / among;
    due -= count * among;
    return count;
  }
  __attribute__((always_inline)) void fetch(int64_t count) {
    for (int64_t i = 0; i < count; ++i, next += kLineBytes) __builtin_prefetch(next, 0, 2);
  }
};

// Nothing to do.
struct Idle {
  Coming coming;
  FIQA_FAST_INLINE void finish_some() {}
};

// A block of up to 32 x 32 sums, rows of 32 floats.
struct SumBlock {
  alignas(64) float data[32 * 32];
  int64_t row, rows;
};

// The weights that come next are fetched, and the sums of the product before are finished, row by
// row: done(row, sums).
template <class Done>
struct Meanwhile {
  Coming coming;
  SumBlock* sums;    // of the product before
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
