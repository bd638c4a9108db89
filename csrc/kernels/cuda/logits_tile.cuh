// SPDX-License-Identifier: Apache-2.0
// Attention logits s q_i . k_j, a tile at a time and in registers only: 64 queries by all keys, 64
// at a time, for kernels that reduce every logit and store none.
//
// A tile's products run over slabs of 128 bytes of each query and key, brought to shared memory
// while the slab before is multiplied. 16-bit elements are multiplied by tensor cores, 32-bit ones
// by fmaf() with the same thread keeping the same logits: in a warp, with g = lane / 4 and
// t = lane % 4, logits[n][2 i + j] belongs to query g + 8 i of the warp's 16 and to key
// 8 n + 2 t + j of the tile's 64. A logit's bits depend on its query and key alone.
#pragma once

#include "kernels/cuda/attention_logits_stats.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/shapes.h"

namespace fiqa_fast::cuda {

struct LogitsTiles {
  // Four warps of 16 queries. Every logit costs some twenty instructions of reduction and only
  // 2 d / 1024 of a tensor core's: blocks of few registers and little shared memory, of which many
  // run at once, hide more than large tiles save.
  int threads = 128;
  int queries = 64;
  // A thread keeps 32 logits; with the reductions' state that stays far below 128 registers.
  int keys = 64;
  // A slab's row is 8 groups of 16 bytes, all 32 banks once: 64 channels of bfloat16, so that the
  // usual head_dim of 64 needs one. Four slabs are 32 KiB, below what every device gives.
  int groups = 8;
  // That a multiprocessor is to hold at least (two, where it has 100 KiB of shared memory). It
  // leaves 170 registers to a thread; told nothing, ptxas aims at five blocks and spills.
  int blocks = 3;
};
constexpr LogitsTiles kLogitsTiles;
constexpr int kTileThreads = kLogitsTiles.threads;
constexpr int kTileWarps = kTileThreads / kWarp;
static_assert(kTileWarps == kWarpsPerChunk);

// Keys of a tile come in eights, the width of a tensor core's result.
constexpr int kKeyGroups = kLogitsTiles.keys / 8;
using Logits = float[kKeyGroups][4];

// 64 rows of queries or keys. Group c of row r lies at c ^ (r % 8), so that eight rows' groups of
// the same number meet different banks.
struct Slab {
  alignas(128) uint4 rows[kLogitsTiles.queries][kLogitsTiles.groups];
  __device__ uint4& at(int row, int group) { return rows[row][group ^ (row & 7)]; }
};
static_assert(kLogitsTiles.queries == kLogitsTiles.keys, "one kind of slab for both");

struct SlabPairs {
  Slab q[2], k[2];
};

// The query of the chunk, and the key of the tile, that this thread's logits belong to.
__device__ inline int query_of(int i) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  return warp * 16 + lane / 4 + 8 * i;
}
__device__ inline int key_of(int n, int j) { return 8 * n + 2 * (threadIdx.x % 4) + j; }

__device__ inline uint32_t bits_of(float value) { return __float_as_uint(value); }
template <class T>
__device__ inline uint32_t bits_of(T value) {
  return value.bits;
}

// A group of `count` elements `stride` apart, and zeros.
template <class T>
__device__ inline uint4 gather(const T* from, int64_t stride, int64_t count) {
  constexpr int kPerWord = kGroup<T> / 4;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kGroup<T>; ++i)
    if (i < count) words[i / kPerWord] |= bits_of(from[i * stride]) << (i % kPerWord * 16);
  return {words[0], words[1], words[2], words[3]};
}

// Begins to bring a slab: 64 tokens from `first` on, all groups from `channel` on, zeros beyond
// either. With kVector it lands at cp_async_wait, otherwise at once.
template <class T, bool kVector>
__device__ void begin_slab(Slab& slab, const T* head, const AttentionTokens& side, int64_t first,
                           int64_t channel, int64_t head_dim) {
  constexpr int kGroups = kLogitsTiles.groups;
#pragma unroll 1  // addresses of four copies at once would be all registers that are left
  for (int i = threadIdx.x; i < kLogitsTiles.queries * kGroups; i += kTileThreads) {
    const int row = i / kGroups, group = i % kGroups;
    const int64_t c = channel + group * kGroup<T>;
    const bool inside = first + row < side.tokens && c < head_dim;
    const T* from =
        inside ? head + (first + row) * side.token_stride + c * side.channel_stride : head;
    uint4* to = &slab.at(row, group);
    if constexpr (kVector)
      cp_async_16(to, from, inside);
    else
      *to = gather(from, side.channel_stride, inside ? head_dim - c : 0);
  }
}

// logits += q k^T over the first `channels` of two slabs, which are zero from there to a multiple
// of 16 channels.
template <class T>
__device__ void multiply(Logits& logits, Slab& q, Slab& k, int channels) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll 1  // a step has work enough to overlap, and two do not fit the registers
  for (int step = 0; 16 * step < channels; ++step) {
    uint32_t a[4];
    ldmatrix_x4(a, &q.at(warp * 16 + lane % 16, 2 * step + lane / 16));
#pragma unroll
    for (int n = 0; n < kKeyGroups; n += 2) {
      // Both halves of the channels of eight keys, then of the next eight.
      uint32_t b[4];
      ldmatrix_x4(b, &k.at(8 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
      // Tensor cores cut off what does not fit beside the sum so far. Sixteen products at a time,
      // added up outside, lose little; a sum over all channels and heads would drift towards zero.
      float sums[2][4] = {};
      mma_m16n8k16(sums[0], a, first, T{});
      mma_m16n8k16(sums[1], a, second, T{});
#pragma unroll
      for (int i = 0; i < 8; ++i) logits[n + i / 4][i % 4] += sums[i / 4][i % 4];
    }
  }
}

// Four products, added up on their own first: a logit's sum then rounds a quarter as often.
__device__ inline float dot4(uint4 a, uint4 b) {
  float sum = __uint_as_float(a.x) * __uint_as_float(b.x);
  sum = fmaf(__uint_as_float(a.y), __uint_as_float(b.y), sum);
  sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);
  return fmaf(__uint_as_float(a.w), __uint_as_float(b.w), sum);
}

template <>
__device__ inline void multiply<float>(Logits& logits, Slab& q, Slab& k, int channels) {
  for (int group = 0; 4 * group < channels; ++group) {
    const uint4 queries[2] = {q.at(query_of(0), group), q.at(query_of(1), group)};
#pragma unroll
    for (int n = 0; n < kKeyGroups; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint4 key = k.at(key_of(n, j), group);
#pragma unroll
        for (int i = 0; i < 2; ++i) logits[n][2 * i + j] += dot4(queries[i], key);
      }
    }
  }
}

// Which of a thread's logits of a tile exist.
struct Valid {
  int queries, keys;  // from the tile's first on
  __device__ Valid(int64_t queries_left, int64_t keys_left)
      : queries(static_cast<int>(queries_left < 64 ? queries_left : 64)),
        keys(static_cast<int>(keys_left < 64 ? keys_left : 64)) {}
  __device__ bool query(int i) const { return query_of(i) < queries; }
  __device__ bool key(int n, int j) const { return key_of(n, j) < keys; }
};

// Where a block's tiles lie.
struct Item {
  int64_t image, matrix, first_query;
  int64_t row;  // of all B H' matrices
  int64_t chunk;
  __device__ Item(const LogitsInput& in, int64_t item) {
    const int64_t chunks = divide_up(in.q.tokens, kLogitsTiles.queries);
    row = item / chunks;
    chunk = item % chunks;
    image = row / in.matrices;
    matrix = row % in.matrices;
    first_query = chunk * kLogitsTiles.queries;
  }
  __host__ __device__ static int64_t count(const LogitsInput& in) {
    return in.images * in.matrices * divide_up(in.q.tokens, kLogitsTiles.queries);
  }
};

// Calls visitor.tile(logits, first_key) for every tile of 64 queries from first_query on, of one
// matrix of logits of one image; then, behind a barrier, visitor.after(first_key). Every thread of
// the block calls it. Logits beyond the queries or keys there are have any value.
template <class T, bool kVector, class Visitor>
__device__ void visit_tiles(const LogitsInput& in, int64_t image, int64_t matrix,
                            int64_t first_query, SlabPairs& slabs, Visitor& visitor) {
  constexpr int kChannels = kLogitsTiles.groups * kGroup<T>;
  // An average of heads is one head with the channels of all.
  const int joined = static_cast<int>(in.heads / in.matrices);
  const int per_head = static_cast<int>(divide_up(in.head_dim, kChannels));
  const int depth = joined * per_head;
  const int tiles = static_cast<int>(divide_up(in.k.tokens, kLogitsTiles.keys));
  const T* q = static_cast<const T*>(in.q.data) + image * in.q.image_stride;
  const T* k = static_cast<const T*>(in.k.data) + image * in.k.image_stride;

  const auto begin = [&](int tile, int slab, int place) {
    const int64_t head = matrix * joined + slab / per_head;
    const int64_t channel = slab % per_head * kChannels;
    // A single slab of queries serves all tiles.
    if (depth > 1 || tile == 0)
      begin_slab<T, kVector>(slabs.q[depth > 1 ? place : 0], q + head * in.q.head_stride, in.q,
                             first_query, channel, in.head_dim);
    begin_slab<T, kVector>(slabs.k[place], k + head * in.k.head_stride, in.k,
                           static_cast<int64_t>(tile) * kLogitsTiles.keys, channel, in.head_dim);
  };

  begin(0, 0, 0);
  cp_async_commit();
  int place = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    Logits logits = {};
    for (int slab = 0; slab < depth; ++slab) {
      const bool last_slab = slab + 1 == depth;
      if (!last_slab)
        begin(tile, slab + 1, 1 - place);
      else if (tile + 1 < tiles)
        begin(tile + 1, 0, 1 - place);
      cp_async_commit();  // if need be an empty group, so that one is always ahead
      cp_async_wait<1>();
      __syncthreads();
      const int64_t left = in.head_dim - slab % per_head * kChannels;
      multiply<T>(logits, slabs.q[depth > 1 ? place : 0], slabs.k[place],
                  left < kChannels ? static_cast<int>(left) : kChannels);
      if (last_slab) {
#pragma unroll
        for (int n = 0; n < kKeyGroups; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) logits[n][i] *= in.scale;
        visitor.tile(logits, static_cast<int64_t>(tile) * kLogitsTiles.keys);
      }
      __syncthreads();  // before the slabs just read are overwritten
      place = 1 - place;
    }
    visitor.after(static_cast<int64_t>(tile) * kLogitsTiles.keys);
  }
}

template <class T>
bool allows_vectors(const AttentionTokens& side, int64_t head_dim) {
  const int64_t strides[] = {side.image_stride, side.head_stride, side.token_stride};
  return rows_are_aligned(side.data, sizeof(T), head_dim, side.channel_stride, strides, 3);
}

}  // namespace fiqa_fast::cuda
