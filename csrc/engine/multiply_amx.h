// SPDX-License-Identifier: Apache-2.0
// AMX: a tile of 16 x 16 sums grows by 32 channels in one instruction. Of the eight tile registers
// four hold sums (a square of two by two), two hold rows, two hold columns.
//
// In assembler of our own: GCC's intrinsics do not tell its optimiser which memory they read (its
// _tile_loadconfig names 8 of 64 bytes), so stores before them may come too late.
#pragma once

#include "engine/number.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// A thread's tiles are configured as long as this lives: all of full size.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t line_bytes[16] = {};
      uint8_t lines[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.line_bytes[i] = kLineBytes, config.lines[i] = kSide;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~TileRegisters() { asm volatile("tilerelease" ::: "memory"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

namespace amx {

#define FIQA_FAST_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define FIQA_FAST_TILE_LOAD(t, from, line) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(line) : "memory")
// Read once: not to drive out of the first cache what will be read again.
#define FIQA_FAST_TILE_STREAM(t, from, line) \
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #t ::"r"(from), "r"(line) : "memory")
#define FIQA_FAST_TILE_STORE(t, to, line) \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(line) : "memory")
#define FIQA_FAST_TILE_BF16(sum, a, b) \
  asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: "memory")

// Rows are unsigned bytes, columns signed ones.
#define FIQA_FAST_TILE_INT8(sum, a, b) \
  asm volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: "memory")

template <bool kAdd, int kRowTiles, int kColumnTiles>
FIQA_FAST_INLINE void begin(const float* c, int64_t stride) {
  if constexpr (kAdd) {
    const float* below = c + kSide * stride;
    const int64_t line = stride * 4;
    FIQA_FAST_TILE_LOAD(0, c, line);
    if constexpr (kColumnTiles == 2) FIQA_FAST_TILE_LOAD(1, c + kSide, line);
    if constexpr (kRowTiles == 2) FIQA_FAST_TILE_LOAD(2, below, line);
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) FIQA_FAST_TILE_LOAD(3, below + kSide, line);
  } else {
    FIQA_FAST_TILE_ZERO(0);
    if constexpr (kColumnTiles == 2) FIQA_FAST_TILE_ZERO(1);
    if constexpr (kRowTiles == 2) FIQA_FAST_TILE_ZERO(2);
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) FIQA_FAST_TILE_ZERO(3);
  }
}

#define FIQA_FAST_TILE_PRODUCT(sum, a, b)  \
  do {                                     \
    if constexpr (__is_same(Number, Int8)) \
      FIQA_FAST_TILE_INT8(sum, a, b);      \
    else                                   \
      FIQA_FAST_TILE_BF16(sum, a, b);      \
  } while (false)

// A panel of columns meets row after row. Together with the rows it would be more than the first
// cache, and each would drive out the other (measured on a ViT-S: a seventh of the time).
template <int kRowTiles, int kColumnTiles, class Number>
FIQA_FAST_INLINE void add(const char* rows, const Operand& a, const char* columns,
                          const Operand& b) {
  FIQA_FAST_TILE_STREAM(4, rows, kLineBytes);
  FIQA_FAST_TILE_LOAD(6, columns, kLineBytes);
  FIQA_FAST_TILE_PRODUCT(0, 4, 6);
  if constexpr (kColumnTiles == 2) {
    FIQA_FAST_TILE_LOAD(7, columns + b.tile, kLineBytes);
    FIQA_FAST_TILE_PRODUCT(1, 4, 7);
  }
  if constexpr (kRowTiles == 2) {
    FIQA_FAST_TILE_STREAM(5, rows + a.tile, kLineBytes);
    FIQA_FAST_TILE_PRODUCT(2, 5, 6);
    if constexpr (kColumnTiles == 2) FIQA_FAST_TILE_PRODUCT(3, 5, 7);
  }
}

template <int kRowTiles, int kColumnTiles>
FIQA_FAST_INLINE void end(float* c, int64_t stride) {
  float* below = c + kSide * stride;
  const int64_t line = stride * 4;
  FIQA_FAST_TILE_STORE(0, c, line);
  if constexpr (kColumnTiles == 2) FIQA_FAST_TILE_STORE(1, c + kSide, line);
  if constexpr (kRowTiles == 2) FIQA_FAST_TILE_STORE(2, below, line);
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) FIQA_FAST_TILE_STORE(3, below + kSide, line);
}

// The products that make up that of two numbers, each of a part of a row's and a part of a
// column's: the small ones first.
struct Factors {
  int row, column;
};
template <class Number>
constexpr Factors kFactors[] = {{0, 0}};
template <>
constexpr Factors kFactors<SplitFloat32>[] = {{1, 0}, {0, 1}, {0, 0}};
template <>
constexpr Factors kFactors<SplitColumns>[] = {{0, 1}, {0, 0}};

template <int kRowTiles, int kColumnTiles, class Number, int I = 0>
FIQA_FAST_INLINE void add_all(const char* rows, const Operand& a, const char* columns,
                              const Operand& b) {
  constexpr auto& kAll = kFactors<Number>;
  if constexpr (I < sizeof(kAll) / sizeof(kAll[0])) {
    add<kRowTiles, kColumnTiles, Number>(rows + kAll[I].row * a.part, a,
                                         columns + kAll[I].column * b.part, b);
    add_all<kRowTiles, kColumnTiles, Number, I + 1>(rows, a, columns, b);
  }
}

}  // namespace amx

template <class Number, bool kAdd, int kRowTiles, int kColumnTiles, class Beside>
FIQA_FAST_INLINE void multiply_by_tiles(const Operand& a, const Operand& b, int64_t step_count,
                                        float* c, int64_t stride, Beside& beside) {
  if constexpr (__is_same(Number, Int8)) {
    static_assert(!kAdd);
    // The same line for all rows.
    amx::begin<true, kRowTiles, kColumnTiles>(reinterpret_cast<const float*>(b.begin), 0);
  } else {
    amx::begin<kAdd, kRowTiles, kColumnTiles>(c, stride);
  }
  const char *rows = a.data, *columns = b.data;
  const int64_t lines = beside.coming.share(kRowTiles * kSide, kColumnTiles);
  for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
    beside.coming.fetch(lines);
    beside.finish_some();
    amx::add_all<kRowTiles, kColumnTiles, Number>(rows, a, columns, b);
  }
  amx::end<kRowTiles, kColumnTiles>(c, stride);
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
