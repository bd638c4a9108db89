// SPDX-License-Identifier: Apache-2.0
// The exact lower median of an image's logits, without keeping one: digits of four bits, from the
// top, of keys that sort as floats do. For each digit, tiles are computed once more; threads count
// in registers the values that the digit has among the logits that begin with the digits found so
// far, and a block per image finds where the median's rank falls. No atomics and no addresses that
// depend on data: a verifier can follow all of it.
#pragma once

#include <math.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logits_tile.cuh"

namespace fiqa_fast::cuda {
namespace {

// Of select: eight warps share the counts of an image.
constexpr int kSelectThreads = 256;

constexpr int kBins = 16;
static_assert(kCountsSize == kBins + 1);  // and NaN
struct Digit {
  int shift;
  uint32_t above;   // the bits of the digits before
  uint32_t prefix;  // what they have to be
};
__device__ Digit digit_of(int pass, uint32_t prefix) {
  const int shift = 28 - 4 * pass;
  return {shift, pass ? ~0u << (shift + 4) : 0u, pass ? prefix : 0u};
}

__device__ uint32_t key_from(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float float_from(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct CountVisitor {
  const AttentionLogitsStatsArgs& a;
  const Item& item;
  const Digit digit;
  uint32_t counts[kBins];
  uint32_t nans;

  __device__ void tile(const Logits& logits, int64_t first_key) {
    const Valid valid(a.q.tokens - item.first_query, a.k.tokens - first_key);
    // A byte for each bin: a tile has 32 logits for a thread.
    uint64_t low = 0, high = 0;
#pragma unroll
    for (int n = 0; n < kKeyGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool inside = valid.query(i / 2) && valid.key(n, i % 2);
        const float x = logits[n][i];
        const uint32_t key = key_from(x), bin = key >> digit.shift & (kBins - 1);
        const uint64_t counts_here = inside && (key & digit.above) == digit.prefix ? 1 : 0;
        const uint64_t byte = counts_here << (bin % 8 * 8);
        low += bin < 8 ? byte : 0;
        high += bin < 8 ? 0 : byte;
        nans += inside && x != x ? 1 : 0;
      }
    }
#pragma unroll
    for (int bin = 0; bin < kBins; ++bin)
      counts[bin] += static_cast<uint32_t>((bin < 8 ? low : high) >> (bin % 8 * 8)) & 255u;
  }

  __device__ void after(int64_t) {}

  __device__ void finish(uint32_t* warp_counts) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int bin = 0; bin <= kBins; ++bin) {
      uint32_t sum = bin < kBins ? counts[bin] : nans;
      for (int bits = kWarp / 2; bits > 0; bits /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, bits);
      if (lane == 0) warp_counts[bin] = sum;
    }
  }
};

template <class T, bool kVector>
__global__ void __launch_bounds__(kTileThreads, kLogitsTiles.blocks)
    count(AttentionLogitsStatsArgs a, int pass) {
  __shared__ SlabPairs slabs;
  for (int64_t i = blockIdx.x; i < Item::count(a); i += gridDim.x) {
    const Item item(a, i);
    const uint32_t prefix = pass ? a.searches[(pass - 1) * a.images + item.image].prefix : 0u;
    CountVisitor visitor = {a, item, digit_of(pass, prefix), {}, 0};
    visit_tiles<T, kVector>(a, item.image, item.matrix, item.first_query, slabs, visitor);
    visitor.finish(a.counts + (i * kTileWarps + threadIdx.x / kWarp) * kCountsSize);
  }
}

// Finds the digit that holds the rank of the lower median; a block per image, a lane per bin.
__global__ void __launch_bounds__(kSelectThreads) select(AttentionLogitsStatsArgs a, int pass) {
  constexpr int kWarps = kSelectThreads / kWarp;
  constexpr uint32_t kAll = 0xffffffffu;
  __shared__ int64_t warp_sums[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t per_image = Item::count(a) / a.images * kTileWarps;
  for (int64_t image = blockIdx.x; image < a.images; image += gridDim.x) {
    int64_t sum = 0;
    if (lane < kCountsSize)
      for (int64_t i = warp; i < per_image; i += kWarps)
        sum += a.counts[(image * per_image + i) * kCountsSize + lane];
    warp_sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
      for (int other = 1; other < kWarps; ++other) sum += warp_sums[other][lane];
      const int64_t nans = __shfl_sync(kAll, sum, kBins);
      for (int step = 1; step < kBins; step *= 2) {
        const int64_t before = __shfl_up_sync(kAll, sum, step);
        sum += lane >= step ? before : 0;
      }
      const int64_t first_rank = (a.matrices * a.q.tokens * a.k.tokens - 1) / 2;
      const MedianSearch* found = pass ? a.searches + (pass - 1) * a.images + image : nullptr;
      const int64_t rank = pass ? found->rank : first_rank;
      // Bins that hold, with all before, only what lies below the rank.
      const int bin = __popc(__ballot_sync(kAll, lane < kBins && sum <= rank));
      const int64_t below = __shfl_sync(kAll, sum, bin > 0 ? bin - 1 : 0);
      const Digit digit = digit_of(pass, pass ? found->prefix : 0u);
      const uint32_t prefix = digit.prefix | static_cast<uint32_t>(bin) << digit.shift;
      if (lane == 0) {
        a.searches[pass * a.images + image] = {rank - (bin > 0 ? below : 0), prefix};
        if (pass + 1 == kDigits) a.out.median[image] = nans > 0 ? NAN : float_from(prefix);
      }
    }
    __syncthreads();  // before the next image's sums
  }
}

template <class T, bool kVector>
cudaError_t launch_median(const AttentionLogitsStatsArgs& a, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (int pass = 0; pass < kDigits && error == cudaSuccess; ++pass) {
    error = launch(count<T, kVector>, blocks_for(Item::count(a)), kTileThreads, 0, stream, a, pass);
    if (error == cudaSuccess)
      error = launch(select, blocks_for(a.images), kSelectThreads, 0, stream, a, pass);
  }
  return error;
}

}  // namespace
}  // namespace fiqa_fast::cuda
