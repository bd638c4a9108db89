// SPDX-License-Identifier: Apache-2.0
// Products by vectors: one instruction multiplies a word of a row, in all lanes, with a register of
// columns, one word of each.
#pragma once

#include "engine/meanwhile.h"
#include "engine/number.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// What one instruction multiplies, and what it adds to.
template <class Number>
struct Products;

template <>
struct Products<Float32> {
  using Word = Floats;
  using Columns = Floats;
  using Sums = Floats;
  FIQA_FAST_INLINE Sums begin(const Operand&, int64_t) { return Floats{}; }
  FIQA_FAST_INLINE Sums add(Word word, Columns columns, Sums sums) {
    return fma(word, columns, sums);
  }
};

#if defined(__AVX512BF16__)
template <>
struct Products<Bfloat16> {
  using Word = Ints;
  using Columns = Ints;
  using Sums = Floats;
  FIQA_FAST_INLINE Sums begin(const Operand&, int64_t) { return Floats{}; }
  FIQA_FAST_INLINE Sums add(Word word, Columns columns, Sums sums) {
    return _mm512_dpbf16_ps(sums, (__m512bh)word, (__m512bh)columns);
  }
};
#endif

#if defined(__AVX2__)
template <>
struct Products<Int8> {
  using Word = Ints;
  using Columns = Ints;
  using Sums = Ints;
  FIQA_FAST_INLINE Sums begin(const Operand& columns, int64_t column) {
    return *reinterpret_cast<const IntsAnywhere*>(columns.begin + column);
  }
  // Four products of bytes for every sum. Before VNNI they are added in pairs, in sixteen bits: see
  // Int8::kColumnTop.
  FIQA_FAST_INLINE Sums add(Word word, Columns columns, Sums sums) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)word, (__m512i)columns);
#elif defined(__AVX512F__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)word, (__m512i)columns);
    return sums + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#else
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)word, (__m256i)columns);
    return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
  }
};
#endif

// How rows are cut: as many sums at a time as there are registers for, beside the lines and a word.
// The sums of integers, one cycle each, need no more than hide the multiplications. `kTiles` of
// columns are taken at a time, and the cuts make up one tile of rows, or two.
#if defined(__AVX512F__)
template <class Number>
constexpr int kTilesAtOnce = 2;
template <class Number, int kTiles>
struct Cut {
  static constexpr int kRows[] = {8, 8};
};
#elif defined(__AVX2__)
template <class Number>
constexpr int kTilesAtOnce = 1;
template <>
constexpr int kTilesAtOnce<Float32> = 2;
template <class Number, int kTiles>
struct Cut {
  static constexpr int kRows[] = {6, 5, 5};
};
template <>
struct Cut<Float32, 2> {
  static constexpr int kRows[] = {3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2};
};
template <>
struct Cut<Int8, 1> {
  static constexpr int kRows[] = {4, 4, 4, 4};
};
#elif defined(__aarch64__)
template <class Number>
constexpr int kTilesAtOnce = 1;
template <class Number, int kTiles>
struct Cut {
  static constexpr int kRows[] = {4, 4, 4, 4};
};
#else
template <class Number>
constexpr int kTilesAtOnce = 1;
template <class Number, int kTiles>
struct Cut {
  static constexpr int kRows[] = {2, 2, 2, 2, 2, 2, 2, 2};
};
#endif

// Steps at a time: the 16 KiB of their columns stay in the first cache while rows pass them. With
// 32 of the 48 KiB that an EPYC's AVX-512 has, float32 of one image was 0.93, bfloat16 0.98 times
// as fast: half of every tile of rows is read at a time, from half of the cache's sets.
template <int kTiles>
constexpr int64_t kStepsAtOnce = 16 / kTiles;

template <class Number, int kTiles>
constexpr int64_t cut_tiles() {
  int64_t rows = 0;
  for (const int count : Cut<Number, kTiles>::kRows) rows += count;
  return rows / kSide;
}

// A register from anywhere; and the four bytes at `from`, in all lanes.
template <class Register>
FIQA_FAST_INLINE Register load_register(const void* from) {
  Register out;
  memcpy(&out, from, sizeof(out));
  return out;
}

template <class Register>
FIQA_FAST_INLINE Register load_word(const char* from) {
  using Lane = decltype(Register{}[0] + 0);
  Lane lane;
  memcpy(&lane, from, sizeof(lane));
  return lane - Register{};
}

// What is fetched meanwhile: rows that come next, as many as the largest cut has, and weights, so
// many lines for every step.
struct Fetched {
  const char *rows, *weights;
  int64_t lines;
};

// c, of rows of `stride` floats, becomes or grows by the product of kRows rows, of which kFirst are
// in one tile and the others, `gap` bytes further, in the next. Not inlined: the loops are long
// beside a call, and there are many callers.
template <class Number, int kRows, int kTiles, int kFirst>
static __attribute__((noinline)) void multiply_rows(const char* rows, int64_t gap, Fetched then,
                                                    const Operand& b, int64_t step_count, bool add,
                                                    float* c, int64_t stride) {
  using P = Products<Number>;
  constexpr int kRegisters = kTiles * kParts;
  typename P::Sums sums[kRows][kRegisters];
#pragma GCC unroll 8
  for (int i = 0; i < kRegisters; ++i) {
    const auto begin = P::begin(b, i * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r][i] = add ? load_register<typename P::Sums>(c + r * stride + i * kWidth) : begin;
  }
  const char* columns = b.data;
  const int64_t tile = b.tile, ahead = then.rows - rows;
  for (int64_t step = 0; step < step_count; ++step, rows += kTileBytes, columns += kTileBytes) {
#pragma GCC unroll 8
    for (int r = 0; r < Cut<Number, kTiles>::kRows[0]; ++r)  // no cut has more
      __builtin_prefetch(rows + ahead + r * kLineBytes);
    for (int64_t i = 0; i < then.lines; ++i, then.weights += kLineBytes)
      __builtin_prefetch(then.weights, 0, 2);
// One at a time was 0.75 to 0.95 times as fast (an EPYC with AVX2, in the first cache), eight at a
// time no faster than four.
#pragma GCC unroll 4
    for (int64_t word = 0; word < kSide; ++word) {
      const auto load_row = [=](int r) {
        return load_word<typename P::Word>(rows + (r < kFirst ? 0 : gap) + r * kLineBytes +
                                           word * 4);
      };
      const auto load_columns = [=](int i) {
        return load_register<typename P::Columns>(columns + i / kParts * tile + word * kLineBytes +
                                                  i % kParts * kWidth * 4);
      };
      // What there is less of is kept, the other loaded one by one.
      if constexpr (kRows < kRegisters) {
        typename P::Word words[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) words[r] = load_row(r);
#pragma GCC unroll 8
        for (int i = 0; i < kRegisters; ++i) {
          const auto some = load_columns(i);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sums[r][i] = P::add(words[r], some, sums[r][i]);
        }
      } else {
        typename P::Columns all[kRegisters];
#pragma GCC unroll 8
        for (int i = 0; i < kRegisters; ++i) all[i] = load_columns(i);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const auto factor = load_row(r);
#pragma GCC unroll 8
          for (int i = 0; i < kRegisters; ++i) sums[r][i] = P::add(factor, all[i], sums[r][i]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i)
      memcpy(c + r * stride + i * kWidth, &sums[r][i], sizeof(sums[r][i]));
}

// `count` rows of a tile or two, from row kRow on, cut as the registers want it. `gap`: from the
// first tile's end to the next. The rows at `then` come next.
template <class Number, int kTiles, int I = 0, int kRow = 0>
FIQA_FAST_INLINE void multiply_cuts(const char* rows, int64_t gap, const char* then, int64_t count,
                                    const Operand& b, int64_t step_count, bool add, float* c,
                                    int64_t stride, Coming& coming) {
  constexpr auto& kCuts = Cut<Number, kTiles>::kRows;
  constexpr int kLast = static_cast<int>(sizeof(kCuts) / sizeof(kCuts[0])) - 1;
  constexpr int kRows = kCuts[I], kEnd = kRow + kRows;
  const auto row = [=](int64_t r) { return rows + (r < kSide ? 0 : gap) + r * kLineBytes; };
  const auto cut = [&]<int kCount>() __attribute__((always_inline)) {
    constexpr int kFirst = kRow < kSide && kRow + kCount > kSide ? kSide - kRow : kCount;
    const int64_t left = count - kRow;
    const Fetched fetched{count > kEnd && I < kLast ? row(kEnd) : then, coming.next,
                          coming.share(left < kCount ? left : kCount, kTiles)};
    multiply_rows<Number, kCount, kTiles, kFirst>(row(kRow), gap, fetched, b, step_count, add,
                                                  c + kRow * stride, stride);
    coming.next += fetched.lines * step_count * kLineBytes;
  };
  // Where no more than half a cut is left, no more is computed.
  if (count > kRow + kRows / 2)
    cut.template operator()<kRows>();
  else
    cut.template operator()<kRows / 2>();
  if constexpr (I < kLast)
    if (count > kEnd)
      multiply_cuts<Number, kTiles, I + 1, kEnd>(rows, gap, then, count, b, step_count, add, c,
                                                 stride, coming);
}

// Two tiles of rows and columns at most; c becomes their product or, with kAdd, grows by it.
template <class Number, bool kAdd, int kRowTiles, int kColumnTiles, class Beside>
FIQA_FAST_INLINE void multiply_by_vectors(int64_t rows, const Operand& a, const Operand& b,
                                          int64_t step_count, float* c, int64_t stride,
                                          Beside& beside) {
  constexpr int kTiles = kColumnTiles == kTilesAtOnce<Number> ? kColumnTiles : 1;
  constexpr int64_t kSteps = kStepsAtOnce<kTiles>;
  constexpr int64_t kCutTiles = cut_tiles<Number, kTiles>();
  // In which a step is done.
  constexpr int64_t kTurns = (kRowTiles + kCutTiles - 1) / kCutTiles * (kColumnTiles / kTiles);
  const int64_t gap = a.tile - kTileBytes;
  int64_t turns = 0;
  for (int64_t t = 0; t < kColumnTiles; t += kTiles)
    for (int64_t first = 0; first < step_count; first += kSteps) {
      const int64_t left = step_count - first, count = left < kSteps ? left : kSteps;
      Operand columns = moved(b, t);
      columns.data += first * b.step;
      for (int64_t r = 0; r < kRowTiles; r += kCutTiles) {
        for (turns += count; turns >= kTurns; turns -= kTurns) beside.finish_some();
        const char* tile = a.data + r * a.tile + first * a.step;
        // The next steps, or these rows again with other columns, or others.
        const char* other = left > count                ? a.data + (first + count) * a.step
                            : t + kTiles < kColumnTiles ? a.data
                                                        : a.data + kRowTiles * a.tile;
        multiply_cuts<Number, kTiles>(tile, gap,
                                      r + kCutTiles < kRowTiles ? tile + kCutTiles * a.tile : other,
                                      rows - r * kSide, columns, count, kAdd || first > 0,
                                      c + r * kSide * stride + t * kSide, stride, beside.coming);
      }
    }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
