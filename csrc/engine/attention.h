// SPDX-License-Identifier: Apache-2.0
// Attention of one head of one image. All keys and values of a head fit the second cache for the
// sequences of face models, so a softmax is over whole rows and nothing is computed twice.
#pragma once

#include "engine/layer_norm.h"
#include "engine/linear.h"
#include "kernels/cpu/exp.h"

namespace fiqa_fast::FIQA_FAST_ISA {

// Sixteen channels of up to kDepth rows to a tile whose columns are the channels; rows from `count`
// on are zero.
template <class Number>
FIQA_FAST_INLINE void interleave_tile(const char* rows, int64_t line, int64_t count, char* to) {
  for (int64_t w = 0; w < kSide; ++w, to += kLineBytes) {
    if constexpr (Number::kBytes == 4) {
      const bool there = w < count;
      store(reinterpret_cast<float*>(to),
            there ? load(reinterpret_cast<const float*>(rows + w * line)) : broadcast(0));
    } else {
      for (int p = 0; p < kParts; ++p) {
        Words word = {};
        for (int64_t half = 0; half < 2; ++half)
          if (2 * w + half < count) {
            const char* from = rows + (2 * w + half) * line;
            word |= __builtin_convertvector(reinterpret_cast<const HalvesAnywhere*>(from)[p], Words)
                    << static_cast<uint32_t>(16 * half);
          }
        reinterpret_cast<Words*>(to)[p] = word;
      }
    }
  }
}

// What softmax makes of a row's logits before it divides: exp(scale (logit - highest)).
template <class Number>
struct Exponential {
  Vec scale, highest;
  Exponential(float scale, float highest) : scale(broadcast(scale)), highest(broadcast(highest)) {}
  __attribute__((always_inline)) Vec operator()(Vec logit) const {
    return exp_of_negative((logit - highest) * scale);
  }
};

#if defined(__AVX512BF16__)
// For weights that become bfloat16: 2^x within 3e-6, x = n + r with |r| <= 1/2 and 2^x = 2^n p(r).
template <>
struct Exponential<Bfloat16> {
  Vec scale, begin;
  Exponential(float scale, float highest)
      : scale(broadcast(scale * 1.44269504f)), begin(broadcast(-highest * (scale * 1.44269504f))) {}
  __attribute__((always_inline)) Vec operator()(Vec logit) const {
    const __m512 x = fma(logit, scale, begin).part[0];
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec p = broadcast(0.009570102207362652f);
    constexpr float kCoefficients[] = {0.05591785907745361f, 0.240247443318367f,
                                       0.6931217908859253f, 0.9999992847442627f};
    for (const float coefficient : kCoefficients) p = fma(p, {{(Floats)r}}, broadcast(coefficient));
    return {{(Floats)_mm512_scalef_ps(p.part[0], x - r)}};
  }
};
#endif

// The memory that attention() needs, and where its parts are.
template <class Number>
struct AttentionScratch {
  int64_t queries, keys, values, probabilities, logits, bytes;  // offsets
  int64_t key_steps, logits_stride;

  AttentionScratch(int64_t tokens, int64_t head_dim) {
    key_steps = steps<Number>(tokens);
    // Not a power of two: rows of a tile would share their places in the cache.
    logits_stride = key_steps * Number::kDepth + kSide;
    queries = 0;
    keys = queries + tiled_bytes<Number>(2 * kSide, head_dim);
    values = keys + tiled_bytes<Number>(tokens, head_dim);
    probabilities = values + tiled_bytes<Number>(head_dim, tokens);
    logits = probabilities + tiled_bytes<Number>(2 * kSide, tokens);
    bytes = logits + 2 * kSide * logits_stride * 4;
  }
};

// q, k, v: rows of `line` bytes of an image, each of head_dim numbers padded with zeros to whole
// steps. out(row, channel, value) takes sixteen channels of a row of the result.
template <class Number, class Out>
FIQA_FAST_INLINE void attention(const char* q, const char* k, const char* v, int64_t line,
                                int64_t part, int64_t tokens, int64_t head_dim, float scale,
                                char* scratch, Out out) {
  const AttentionScratch<Number> at(tokens, head_dim);
  const int64_t head_steps = steps<Number>(head_dim), value_tiles = tiles(head_dim);
  const int64_t key_tiles = tiles(tokens);
  char *keys = scratch + at.keys, *values = scratch + at.values;
  char* probabilities = scratch + at.probabilities;
  float* logits = reinterpret_cast<float*>(scratch + at.logits);
  const Operand queries = tiled<Number>(scratch + at.queries, head_steps);
  const Operand by_key = tiled<Number>(keys, head_steps);
  const Operand by_value = tiled<Number>(values, at.key_steps);
  const Operand weights = tiled<Number>(probabilities, at.key_steps);
  for (int64_t p = 0; p < Number::kParts; ++p) {
    for (int64_t t = 0; t < key_tiles; ++t)
      for (int64_t s = 0; s < head_steps; ++s)
        turn_tile(k + t * kSide * line + s * kLineBytes + p * part, line, tokens - t * kSide,
                  keys + t * by_key.tile + s * by_key.step + p * kTileBytes);
    for (int64_t s = 0; s < at.key_steps; ++s)
      for (int64_t t = 0; t < value_tiles; ++t)
        interleave_tile<Number>(
            v + s * Number::kDepth * line + t * kSide * Number::kBytes + p * part, line,
            tokens - s * Number::kDepth,
            values + t * by_value.tile + s * by_value.step + p * kTileBytes);
  }
  Idle idle;
  const int64_t last = (tokens - 1) / kLanes * kLanes;
  const Vec hidden = fill_from(broadcast(0), tokens - last, -__builtin_inff());
  for (int64_t first = 0; first < tokens; first += 2 * kSide) {
    const int64_t rows = tokens - first < 2 * kSide ? tokens - first : 2 * kSide;
    for (int64_t p = 0; p < Number::kParts; ++p)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t s = 0; s < head_steps; ++s)
          memcpy(place<Number>(scratch + at.queries, head_steps, r, s * Number::kDepth) +
                     p * kTileBytes,
                 q + (first + r) * line + s * kLineBytes + p * part, kLineBytes);
    for (int64_t t = 0; t < key_tiles; t += 2)
      multiply<Number, false>(rows, t + 1 < key_tiles, queries, moved(by_key, t), head_steps,
                              logits + t * kSide, at.logits_stride, idle);
    float divisors[2 * kSide];
    for (int64_t r = 0; r < rows; ++r) {
      float* logit = logits + r * at.logits_stride;
      store(logit + last, load(logit + last) + hidden);
      Vec top = load(logit + last), other = top;
      for (int64_t c = 0; c < last; c += 2 * kLanes)  // `last` itself at most
        top = max(top, load(logit + c)), other = max(other, load(logit + c + kLanes));
      const Exponential<Number> exponential(scale, greatest(max(top, other)));
      char* to = place<Number>(probabilities, at.key_steps, r, 0);
      const auto put = [&](int64_t c, Vec weight) {
        Number::put(to + c / Number::kDepth * weights.step + c % Number::kDepth * Number::kBytes,
                    kTileBytes, weight);
        return weight;
      };
      const Vec all = sum_of(last + kLanes, broadcast(0),
                             [&](int64_t c) { return put(c, exponential(load(logit + c))); });
      for (int64_t c = last + kLanes; c < at.key_steps * Number::kDepth; c += kLanes)
        put(c, broadcast(0));
      divisors[r] = total(all);
    }
    for (int64_t t = 0; t < value_tiles; t += 2) {
      alignas(64) float sums[32 * 32];
      const bool two = t + 1 < value_tiles;
      multiply<Number, false>(rows, two, weights, moved(by_value, t), at.key_steps, sums, 32, idle);
      for (int64_t r = 0; r < rows; ++r) {
        const Vec factor = broadcast(1.0f / divisors[r]);
        for (int64_t c = 0; c < (two ? 32 : 16); c += kLanes)
          out(first + r, t * kSide + c, load(sums + r * 32 + c) * factor);
      }
    }
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
