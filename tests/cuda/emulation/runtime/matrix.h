// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp exchange in ldmatrix and mma.
#pragma once

#include <stdint.h>

#include <source_location>

#include "runtime/narrow.h"

namespace emulation {

struct MatrixRows {
  uint16_t row[8];       // in: the row that this lane named
  uint32_t fragment[4];  // out: this lane's elements of each matrix
};

// `count` matrices of 8 x 8.
void ldmatrix(MatrixRows& rows, int count,
              std::source_location where = std::source_location::current());

// c [16, 8] += a [16, 16] b [16, 8], in fragments.
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Narrow type,
         std::source_location where = std::source_location::current());

}  // namespace emulation
