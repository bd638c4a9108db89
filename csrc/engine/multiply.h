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

// Rows at a time, and tiles of columns at a time: as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int kBlockRows = 8, kBlockTiles = 2;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kBlockRows = 4, kBlockTiles = 1;
#else
constexpr int kBlockRows = 2, kBlockTiles = 1;
#endif

// A line of columns as the instruction takes it, made once for all rows.
template <class Number>
struct Line;

template <>
struct Line<Float32> {
  Vec value;
  FIQA_FAST_INLINE Line of(const char* line) {
    return {load(reinterpret_cast<const float*>(line))};
  }
  FIQA_FAST_INLINE Vec word(const char* word) {
    float value;
    memcpy(&value, word, sizeof(value));
    return broadcast(value);
  }
  FIQA_FAST_INLINE Vec add(const Line& line, Vec word, Vec sum) {
    return fma(word, line.value, sum);
  }
};

#if defined(__AVX512BF16__)
template <>
struct Line<Bfloat16> {
  __m512i value;
  FIQA_FAST_INLINE Line of(const char* line) { return {_mm512_loadu_si512(line)}; }
  FIQA_FAST_INLINE __m512i word(const char* word) {
    int32_t value;
    memcpy(&value, word, sizeof(value));
    return _mm512_set1_epi32(value);
  }
  FIQA_FAST_INLINE Vec add(const Line& line, __m512i word, Vec sum) {
    return {{_mm512_dpbf16_ps(sum.part[0], (__m512bh)word, (__m512bh)line.value)}};
  }
};
#else
template <>
struct Line<Bfloat16> {
  Vec even, odd;  // channels
  struct Word {
    Vec even, odd;
  };
  FIQA_FAST_INLINE Line of(const char* line) {
    const Vec both = load(reinterpret_cast<const float*>(line));
    Line out;
    for (int p = 0; p < kParts; ++p) {
      out.even.part[p] = (Floats)((Words)both.part[p] << 16);
      out.odd.part[p] = (Floats)((Words)both.part[p] & 0xffff0000u);
    }
    return out;
  }
  FIQA_FAST_INLINE Word word(const char* word) {
    uint32_t value, low, high;
    memcpy(&value, word, sizeof(value));
    low = value << 16, high = value & 0xffff0000u;
    float even, odd;
    memcpy(&even, &low, sizeof(even));
    memcpy(&odd, &high, sizeof(odd));
    return {broadcast(even), broadcast(odd)};
  }
  FIQA_FAST_INLINE Vec add(const Line& line, const Word& word, Vec sum) {
    return fma(word.odd, line.odd, fma(word.even, line.even, sum));
  }
};
#endif

// c, of rows of `stride` floats, becomes or grows by the product.
template <class Number, bool kAdd, int kTiles>
FIQA_FAST_INLINE void multiply_rows(const char* rows, const Operand& a, const Operand& b,
                                    int64_t step_count, float* c, int64_t stride) {
  Vec sums[kBlockRows][kTiles];
  for (int r = 0; r < kBlockRows; ++r)
    for (int t = 0; t < kTiles; ++t)
      sums[r][t] = kAdd ? load(c + r * stride + t * kSide) : broadcast(0);
  const char* columns = b.data;
  for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step)
    for (int64_t word = 0; word < kSide; ++word) {
      Line<Number> lines[kTiles];
      for (int t = 0; t < kTiles; ++t)
        lines[t] = Line<Number>::of(columns + t * b.tile + word * kLineBytes);
      for (int r = 0; r < kBlockRows; ++r) {
        const auto factor = Line<Number>::word(rows + r * a.line + word * 4);
        for (int t = 0; t < kTiles; ++t)
          sums[r][t] = Line<Number>::add(lines[t], factor, sums[r][t]);
      }
    }
  for (int r = 0; r < kBlockRows; ++r)
    for (int t = 0; t < kTiles; ++t) store(c + r * stride + t * kSide, sums[r][t]);
}

template <class Number, bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(const Operand& a, const Operand& b, int64_t step_count, float* c,
                            int64_t stride, Meanwhile&) {
    for (int64_t row = 0; row < kRowTiles * kSide; row += kBlockRows) {
      const char* rows = a.data + row / kSide * a.tile + row % kSide * a.line;
      float* sums = c + row * stride;
      if constexpr (kColumnTiles == 2 && kBlockTiles == 2) {
        multiply_rows<Number, kAdd, 2>(rows, a, b, step_count, sums, stride);
      } else {
        for (int64_t t = 0; t < kColumnTiles; ++t)
          multiply_rows<Number, kAdd, 1>(rows, a, moved(b, t), step_count, sums + t * kSide,
                                         stride);
      }
    }
  }
};

#if defined(__AMX_BF16__)
template <bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply<Bfloat16, kAdd, kRowTiles, kColumnTiles> {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(const Operand& a, const Operand& b, int64_t step_count, float* c,
                            int64_t stride, Meanwhile& meanwhile) {
    amx::begin<kAdd, kRowTiles, kColumnTiles>(c, stride);
    const char *rows = a.data, *columns = b.data;
    for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
      meanwhile.step();
      amx::add<kRowTiles, kColumnTiles>(rows, a, columns, b);
    }
    amx::end<kRowTiles, kColumnTiles>(c, stride);
  }
};

template <bool kAdd, int kRowTiles, int kColumnTiles>
struct Multiply<SplitFloat32, kAdd, kRowTiles, kColumnTiles> {
  template <class Meanwhile>
  FIQA_FAST_INLINE void run(const Operand& a, const Operand& b, int64_t step_count, float* c,
                            int64_t stride, Meanwhile& meanwhile) {
    amx::begin<kAdd, kRowTiles, kColumnTiles>(c, stride);
    const char *rows = a.data, *columns = b.data;
    for (int64_t step = 0; step < step_count; ++step, rows += a.step, columns += b.step) {
      meanwhile.step();
      // The small products first.
      amx::add<kRowTiles, kColumnTiles>(rows + a.part, a, columns, b);
      amx::add<kRowTiles, kColumnTiles>(rows, a, columns + b.part, b);
      amx::add<kRowTiles, kColumnTiles>(rows, a, columns, b);
    }
    amx::end<kRowTiles, kColumnTiles>(c, stride);
  }
};
#endif

// `meanwhile` is told of every step: what the tile unit leaves idle can be used.
template <class Number, bool kAdd, class Meanwhile>
FIQA_FAST_INLINE void multiply(bool two_rows, bool two_columns, const Operand& a, const Operand& b,
                               int64_t step_count, float* c, int64_t stride, Meanwhile& meanwhile) {
  if (two_rows && two_columns)
    Multiply<Number, kAdd, 2, 2>::run(a, b, step_count, c, stride, meanwhile);
  else if (two_rows)
    Multiply<Number, kAdd, 2, 1>::run(a, b, step_count, c, stride, meanwhile);
  else if (two_columns)
    Multiply<Number, kAdd, 1, 2>::run(a, b, step_count, c, stride, meanwhile);
  else
    Multiply<Number, kAdd, 1, 1>::run(a, b, step_count, c, stride, meanwhile);
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
