// SPDX-License-Identifier: Apache-2.0
// The innermost product: up to two tiles of rows times up to two tiles of columns. Whatever the
// instructions, a result's terms are added in the order of the channels, so it does not depend on
// the rows and columns beside it.
#pragma once

#include "engine/number.h"

#if defined(__AMX_BF16__)
#include "engine/multiply_amx.h"
#endif

namespace fiqa_fast::FIQA_FAST_ISA {

// Nothing to do meanwhile: see Meanwhile in linear.h.
struct Idle {
  FIQA_FAST_INLINE void step() {}
};

// A line of columns as the instruction takes it, made once for all rows, and what its products are
// added to.
template <class Number>
struct Line;

template <>
struct Line<Float32> {
  using Sum = Vec;
  Vec value;
  FIQA_FAST_INLINE Line of(const char* line) {
    return {load(reinterpret_cast<const float*>(line))};
  }
  FIQA_FAST_INLINE Vec word(const char* word) {
    float value;
    memcpy(&value, word, sizeof(value));
    return broadcast(value);
  }
  FIQA_FAST_INLINE Vec begin(const Operand&, int64_t) { return broadcast(0); }
  FIQA_FAST_INLINE Vec load_sum(const float* from) { return load(from); }
  FIQA_FAST_INLINE void store_sum(float* to, Vec sum) { store(to, sum); }
  FIQA_FAST_INLINE Vec add(const Line& line, Vec word, Vec sum) {
    return fma(word, line.value, sum);
  }
};

#if defined(__AVX512BF16__)
template <>
struct Line<Bfloat16> {
  using Sum = Vec;
  __m512i value;
  FIQA_FAST_INLINE Line of(const char* line) { return {_mm512_loadu_si512(line)}; }
  FIQA_FAST_INLINE __m512i word(const char* word) {
    int32_t value;
    memcpy(&value, word, sizeof(value));
    return _mm512_set1_epi32(value);
  }
  FIQA_FAST_INLINE Vec begin(const Operand&, int64_t) { return broadcast(0); }
  FIQA_FAST_INLINE Vec load_sum(const float* from) { return load(from); }
  FIQA_FAST_INLINE void store_sum(float* to, Vec sum) { store(to, sum); }
  FIQA_FAST_INLINE Vec add(const Line& line, __m512i word, Vec sum) {
    return {{_mm512_dpbf16_ps(sum.part[0], (__m512bh)word, (__m512bh)line.value)}};
  }
};
#endif

#if defined(__AVX2__)
// Four products of bytes for every sum. Before VNNI they are added in pairs, in sixteen bits: see
// Int8::kColumnTop.
FIQA_FAST_INLINE Ints add_bytes(Ints sum, Ints row, Ints column) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)row, (__m512i)column);
#elif defined(__AVX512F__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)row, (__m512i)column);
  return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#else
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)row, (__m256i)column);
  return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

template <>
struct Line<Int8> {
  using Sum = Counts;
  Counts value;
  FIQA_FAST_INLINE Line of(const char* line) {
    return {load_counts(reinterpret_cast<const float*>(line))};
  }
  FIQA_FAST_INLINE Ints word(const char* word) {
    int32_t value;
    memcpy(&value, word, sizeof(value));
    return value - Ints{};
  }
  FIQA_FAST_INLINE Counts begin(const Operand& columns, int64_t tile) {
    return load_counts(reinterpret_cast<const float*>(columns.begin + tile * kSide));
  }
  FIQA_FAST_INLINE Counts load_sum(const float* from) { return load_counts(from); }
  FIQA_FAST_INLINE void store_sum(float* to, Counts sum) { store_counts(to, sum); }
  FIQA_FAST_INLINE Counts add(const Line& line, Ints word, Counts sum) {
    for (int p = 0; p < kParts; ++p) sum.part[p] = add_bytes(sum.part[p], word, line.value.part[p]);
    return sum;
  }
};
#endif

// How a tile of rows is cut: as many sums at a time as there are registers for, beside the lines
// and a word. The sums of integers, one cycle each, need no more than hide the multiplications.
#if defined(__AVX512F__)
constexpr int kTilesAtOnce = 2;
template <class Number>
struct Cut {
  static constexpr int kRows[] = {8, 8};
};
#elif defined(__AVX2__)
constexpr int kTilesAtOnce = 1;
template <class Number>
struct Cut {
  static constexpr int kRows[] = {6, 5, 5};
};
template <>
struct Cut<Int8> {
  static constexpr int kRows[] = {4, 4, 4, 4};
};
#elif defined(__aarch64__)
constexpr int kTilesAtOnce = 1;
template <class Number>
struct Cut {
  static constexpr int kRows[] = {4, 4, 4, 4};
};
#else
constexpr int kTilesAtOnce = 1;
template <class Number>
struct Cut {
  static constexpr int kRows[] = {2, 2, 2, 2, 2, 2, 2, 2};
};
#endif

// Steps at a time: sixteen columns of so many stay in the first cache while rows pass them.
constexpr int64_t kStepsAtOnce = 16;

// c, of rows of `stride` floats, becomes or grows by the product of kRows rows of a tile. Meanwhile
// those at `then` are fetched, which come next. Not inlined: the loops are long beside a call, and
// there are many callers.
template <class Number, int kRows, int kTiles>
static __attribute__((noinline)) void multiply_rows(const char* rows, const char* then,
                                                    const Operand& b, int64_t step_count, bool add,
                                                    float* c, int64_t stride) {
  using L = Line<Number>;
  typename L::Sum sums[kRows][kTiles];
  if (add) {
    for (int r = 0; r < kRows; ++r)
      for (int t = 0; t < kTiles; ++t) sums[r][t] = L::load_sum(c + r * stride + t * kSide);
  } else {
    for (int t = 0; t < kTiles; ++t) {
      const auto begin = L::begin(b, t);
      for (int r = 0; r < kRows; ++r) sums[r][t] = begin;
    }
  }
  const char* columns = b.data;
  const int64_t tile = b.tile;
  const int64_t ahead = then - rows;
  for (int64_t step = 0; step < step_count; ++step, rows += kTileBytes, columns += kTileBytes) {
#pragma GCC unroll 8
    for (int r = 0; r < Cut<Number>::kRows[0]; ++r)  // no cut has more
      __builtin_prefetch(rows + ahead + r * kLineBytes);
// One at a time was 0.75 to 0.95 times as fast (an EPYC with AVX2, in the first cache), eight at a
// time no faster than four.
#pragma GCC unroll 4
    for (int64_t word = 0; word < kSide; ++word) {
      L lines[kTiles];
      for (int t = 0; t < kTiles; ++t) lines[t] = L::of(columns + t * tile + word * kLineBytes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto factor = L::word(rows + r * kLineBytes + word * 4);
        for (int t = 0; t < kTiles; ++t) sums[r][t] = L::add(lines[t], factor, sums[r][t]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTiles; ++t) L::store_sum(c + r * stride + t * kSide, sums[r][t]);
}

// `count` rows of a tile, cut as the registers want it; the I-th cut and those behind it. The tile
// at `then` comes next.
template <class Number, int kTiles, int I = 0>
FIQA_FAST_INLINE void multiply_tile(const char* rows, const char* then, int64_t count,
                                    const Operand& b, int64_t step_count, bool add, float* c,
                                    int64_t stride) {
  constexpr auto& kRows = Cut<Number>::kRows;
  constexpr int kCuts = static_cast<int>(sizeof(kRows) / sizeof(kRows[0]));
  if constexpr (I < kCuts) {
    if (count <= 0) return;
    const char* behind = rows + kRows[I] * kLineBytes;
    multiply_rows<Number, kRows[I], kTiles>(rows, count > kRows[I] && I + 1 < kCuts ? behind : then,
                                            b, step_count, add, c, stride);
    multiply_tile<Number, kTiles, I + 1>(behind, then, count - kRows[I], b, step_count, add,
                                         c + kRows[I] * stride, stride);
  }
}

template <class Number, bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(int64_t rows, const Operand& a, const Operand& b, int64_t step_count,
                            float* c, int64_t stride, Meanwhile& meanwhile) {
    constexpr int kTiles = kColumnTiles == kTilesAtOnce ? kTilesAtOnce : 1;
    constexpr int kTurns = kRowTiles * (kColumnTiles / kTiles);  // in which a step is done
    int64_t turns = 0;
    for (int64_t t = 0; t < kColumnTiles; t += kTiles)
      for (int64_t first = 0; first < step_count; first += kStepsAtOnce) {
        const int64_t left = step_count - first, count = left < kStepsAtOnce ? left : kStepsAtOnce;
        Operand columns = moved(b, t);
        columns.data += first * b.step;
        for (int64_t r = 0; r < kRowTiles; ++r) {
          for (turns += count; turns >= kTurns; turns -= kTurns) meanwhile.step();
          const char* tile = a.data + r * a.tile + first * a.step;
          const char* other = a.data + (left > count ? first + count : 0) * a.step;
          multiply_tile<Number, kTiles>(tile, r + 1 < kRowTiles ? tile + a.tile : other,
                                        rows - r * kSide, columns, count, kAdd || first > 0,
                                        c + r * kSide * stride + t * kSide, stride);
        }
      }
  }
};

#if defined(__AMX_BF16__)
template <bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply<Bfloat16, kAdd, kRowTiles, kColumnTiles> {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(int64_t, const Operand& a, const Operand& b, int64_t step_count,
                            float* c, int64_t stride, Meanwhile& meanwhile) {
    amx::begin<kAdd, kRowTiles, kColumnTiles>(c, stride);
    const char *rows = a.data, *columns = b.data;
    for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
      meanwhile.step();
      amx::add<kRowTiles, kColumnTiles, Bfloat16>(rows, a, columns, b);
    }
    amx::end<kRowTiles, kColumnTiles>(c, stride);
  }
};

template <bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply<SplitFloat32, kAdd, kRowTiles, kColumnTiles> {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(int64_t, const Operand& a, const Operand& b, int64_t step_count,
                            float* c, int64_t stride, Meanwhile& meanwhile) {
    amx::begin<kAdd, kRowTiles, kColumnTiles>(c, stride);
    const char *rows = a.data, *columns = b.data;
    for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
      meanwhile.step();
      // The small products first.
      amx::add<kRowTiles, kColumnTiles, Bfloat16>(rows + a.part, a, columns, b);
      amx::add<kRowTiles, kColumnTiles, Bfloat16>(rows, a, columns + b.part, b);
      amx::add<kRowTiles, kColumnTiles, Bfloat16>(rows, a, columns, b);
    }
    amx::end<kRowTiles, kColumnTiles>(c, stride);
  }
};

template <bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply<SplitColumns, kAdd, kRowTiles, kColumnTiles> {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(int64_t, const Operand& a, const Operand& b, int64_t step_count,
                            float* c, int64_t stride, Meanwhile& meanwhile) {
    amx::begin<kAdd, kRowTiles, kColumnTiles>(c, stride);
    const char *rows = a.data, *columns = b.data;
    for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
      meanwhile.step();
      amx::add<kRowTiles, kColumnTiles, Bfloat16>(rows, a, columns + b.part, b);
      amx::add<kRowTiles, kColumnTiles, Bfloat16>(rows, a, columns, b);
    }
    amx::end<kRowTiles, kColumnTiles>(c, stride);
  }
};

template <bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply<Int8, kAdd, kRowTiles, kColumnTiles> {
  static_assert(!kAdd);
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(int64_t, const Operand& a, const Operand& b, int64_t step_count,
                            float* c, int64_t stride, Meanwhile& meanwhile) {
    // The same line for all rows.
    amx::begin<true, kRowTiles, kColumnTiles>(reinterpret_cast<const float*>(b.begin), 0);
    const char *rows = a.data, *columns = b.data;
    for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
      meanwhile.step();
      amx::add<kRowTiles, kColumnTiles, Int8>(rows, a, columns, b);
    }
    amx::end<kRowTiles, kColumnTiles>(c, stride);
  }
};
#endif

// The fewest rows of a band of those that threads share (team.h): with less, reading the weights
// shows. A tile unit would do more rows behind the last for every band; its products are shared by
// columns alone.
template <class Number>
constexpr int64_t kBandRows = 64;
#if defined(__AMX_BF16__)
constexpr int64_t kNoBands = INT64_MAX;
template <>
constexpr int64_t kBandRows<Bfloat16> = kNoBands;
template <>
constexpr int64_t kBandRows<SplitFloat32> = kNoBands;
template <>
constexpr int64_t kBandRows<Int8> = kNoBands;
#endif

// Up to 32 of `rows` rows; a few behind the last may be computed as well. `meanwhile` is told of
// every step: what the tile unit leaves idle can be used. Without one it is told of several at
// once.
template <class Number, bool kAdd, class Meanwhile>
FIQA_FAST_INLINE void multiply(int64_t rows, bool two_columns, const Operand& a, const Operand& b,
                               int64_t step_count, float* c, int64_t stride, Meanwhile& meanwhile) {
  const bool two_rows = rows > kSide;
  if (two_rows && two_columns)
    Multiply<Number, kAdd, 2, 2>::run(rows, a, b, step_count, c, stride, meanwhile);
  else if (two_rows)
    Multiply<Number, kAdd, 2, 1>::run(rows, a, b, step_count, c, stride, meanwhile);
  else if (two_columns)
    Multiply<Number, kAdd, 1, 2>::run(rows, a, b, step_count, c, stride, meanwhile);
  else
    Multiply<Number, kAdd, 1, 1>::run(rows, a, b, step_count, c, stride, meanwhile);
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
