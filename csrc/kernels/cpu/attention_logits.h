// SPDX-License-Identifier: Apache-2.0
// The attention logits of a chunk of queries, key by key: sixteen lanes are sixteen queries, so
// that what is reduced over keys needs no sum of lanes. Include this from kernel files only (see
// vec.h).
#pragma once

#include "kernels/cpu/attention_logits_stats.h"
#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {

constexpr int64_t kQueries = kAttentionLogitsStatsQueriesPerChunk;
constexpr int64_t kTile = kAttentionLogitsStatsKeysPerTile;

// Vectors of queries and keys that are multiplied with one another at a time: as many sums as there
// are registers for, beside the queries.
constexpr int kVecsAtOnce = kParts == 1 ? 4 : 1;
constexpr int kKeysAtOnce = kParts == 4 ? 2 : 4;

// A chunk of queries of one image and head; or of all heads, where they are averaged.
struct Chunk {
  int64_t image, matrix, index;  // of B, of H', of the chunks of queries
  int64_t first, count;          // queries
  int64_t vecs;                  // that hold them
};

FIQA_FAST_INLINE Chunk find_chunk(const AttentionLogitsStatsArgs& a, int64_t item) {
  const int64_t image = item / a.items(), matrix = item % a.items() / a.chunks();
  const int64_t index = item % a.chunks(), all = divide_up(a.q.tokens, kLanes);
  const int64_t from = all * index / a.chunks(), to = all * (index + 1) / a.chunks();
  const int64_t first = from * kLanes, left = a.q.tokens - first, most = (to - from) * kLanes;
  return {image, matrix, index, first, left < most ? left : most, to - from};
}

// Calls visit(vecs, v) for groups of vectors, each from v on: the fewest groups, nearly equal.
template <int kCount>
struct Vecs {};

template <class Visit>
FIQA_FAST_INLINE void visit_vecs(int64_t vecs, const Visit& visit) {
  const int64_t groups = divide_up(vecs, kVecsAtOnce);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t from = vecs * g / groups, count = vecs * (g + 1) / groups - from;
    if constexpr (kVecsAtOnce == 4) {
      if (count == 4) visit(Vecs<4>{}, from);
      if (count == 3) visit(Vecs<3>{}, from);
      if (count == 2) visit(Vecs<2>{}, from);
    }
    if (count == 1) visit(Vecs<1>{}, from);
  }
}

// to [padded d, kQueries], from the tokens from `from` on; other queries of a vector are zero.
template <class T>
FIQA_FAST_INLINE void pack_queries(const T* from, const AttentionTokens& tokens, int64_t head_dim,
                                   const Chunk& chunk, float* to) {
  for (int64_t first = 0; first < chunk.count; first += kLanes) {
    const int64_t count = chunk.count - first;
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      Vec square[kLanes] = {};
      for (int64_t i = 0; i < kLanes; ++i)
        if (i < count)
          square[i] =
              load_up_to(from + (first + i) * tokens.token_stride + c * tokens.channel_stride,
                         tokens.channel_stride, head_dim - c);
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store(to + (c + i) * kQueries + first, square[i]);
    }
  }
}

// to [kTile, padded d], from `count` tokens from `from` on; what is left of kKeysAtOnce is zero.
template <class T>
FIQA_FAST_INLINE void pack_keys(const T* from, const AttentionTokens& tokens, int64_t head_dim,
                                int64_t count, float* to) {
  const int64_t padded = round_up(head_dim, kLanes);
  for (int64_t j = 0; j < round_up(count, kKeysAtOnce); ++j)
    for (int64_t c = 0; c < padded; c += kLanes)
      store(to + j * padded + c,
            j < count ? load_up_to(from + j * tokens.token_stride + c * tokens.channel_stride,
                                   tokens.channel_stride, head_dim - c)
                      : Vec{});
}

// out [kKeysAtOnce, kCount vectors] = factor * (products, + out if `add`).
template <int kCount>
FIQA_FAST_INLINE void multiply(const float* queries, const float* keys, int64_t head_dim, bool add,
                               float factor, float* out) {
  const int64_t padded = round_up(head_dim, kLanes);
  Vec sums[kKeysAtOnce][kCount] = {};
  for (int64_t c = 0; c < head_dim; ++c) {
    Vec q[kCount];
    for (int v = 0; v < kCount; ++v) q[v] = load(queries + c * kQueries + v * kLanes);
    for (int j = 0; j < kKeysAtOnce; ++j) {
      const Vec k = broadcast(keys[j * padded + c]);
      for (int v = 0; v < kCount; ++v) sums[j][v] = fma(k, q[v], sums[j][v]);
    }
  }
  for (int j = 0; j < kKeysAtOnce; ++j) {
    for (int v = 0; v < kCount; ++v) {
      float* to = out + j * kQueries + v * kLanes;
      const Vec total = add ? load(to) + sums[j][v] : sums[j][v];
      store(to, total * broadcast(factor));
    }
  }
}

// The chunk's logits [padded Nk, kQueries], in the thread's scratch memory. Every logit is a sum
// over channels in their order, and of heads in theirs.
template <class T>
FIQA_FAST_INLINE const float* form_logits_of(const AttentionLogitsStatsArgs& a,
                                             const Chunk& chunk) {
  float* logits = a.thread_scratch;
  float* queries = logits + a.padded_keys() * kQueries;
  float* keys = queries + kAttentionLogitsStatsMaxHeadDim * kQueries;
  const T* q = static_cast<const T*>(a.q.data) + chunk.image * a.q.image_stride +
               chunk.first * a.q.token_stride;
  const T* k = static_cast<const T*>(a.k.data) + chunk.image * a.k.image_stride;
  const int64_t first_head = chunk.matrix, heads = a.average_heads ? a.heads : 1;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t head = first_head + h;
    pack_queries(q + head * a.q.head_stride, a.q, a.head_dim, chunk, queries);
    for (int64_t tile = 0; tile < a.k.tokens; tile += kTile) {
      const int64_t left = a.k.tokens - tile, count = left < kTile ? left : kTile;
      pack_keys(k + head * a.k.head_stride + tile * a.k.token_stride, a.k, a.head_dim, count, keys);
      visit_vecs(chunk.vecs, [&]<int kCount>(Vecs<kCount>, int64_t v) {
        for (int64_t j = 0; j < count; j += kKeysAtOnce)
          multiply<kCount>(queries + v * kLanes, keys + j * round_up(a.head_dim, kLanes),
                           a.head_dim, h > 0, h + 1 < heads ? 1.0f : a.scale,
                           logits + (tile + j) * kQueries + v * kLanes);
      });
    }
  }
  return logits;
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
