// SPDX-License-Identifier: Apache-2.0
// How the engine lays matrices out. There is one layout for every number format and every
// processor: tiles of sixteen rows of 64 bytes, AMX's own.
//
// A product is rows times columns, summed over channels. The left operand's tile holds sixteen rows
// and as many channels as fit 64 bytes (a "step": 16 float32, 32 bfloat16, 64 int8). The right
// operand's holds sixteen columns: its line w has word w (four bytes: one float32, two bfloat16,
// four int8, sixteen channels apart) of every column. So one instruction takes one word of a row,
// broadcast, and one line of the columns, and adds to sixteen results: fma, vdpbf16ps, vpdpbusd, or
// a whole tile of them at once.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {

constexpr int64_t kSide = 16;       // rows or columns of a tile
constexpr int64_t kLineBytes = 64;  // of a row of a tile
constexpr int64_t kTileBytes = 1024;

FIQA_FAST_INLINE int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
FIQA_FAST_INLINE int64_t tiles(int64_t count) { return parts_of(count, kSide); }

// Where the tiles of an operand are; distances in bytes.
struct Operand {
  const char* data;
  int64_t tile;  // to the next sixteen rows or columns
  int64_t step;  // to the next channels
  int64_t part;  // to the next part of a number that is kept in several
  // Of integers only: what one is worth in each row or column, and what a column's sum begins at.
  const float* units = nullptr;
  const int32_t* begin = nullptr;
};

FIQA_FAST_INLINE Operand moved(Operand operand, int64_t tile) {
  operand.data += tile * operand.tile;
  if (operand.units != nullptr) operand.units += tile * kSide;
  if (operand.begin != nullptr) operand.begin += tile * kSide;
  return operand;
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
