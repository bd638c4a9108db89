// SPDX-License-Identifier: Apache-2.0
// Means of the attention logits s q_i . k_j (the score of ATTN-FIQA, arXiv 2604.22841) without the
// logits: they are bilinear, so their means are products of the means of q and k.
//
// The first kernel finds both means of one head of one image, and the head's score; the second has
// one warp per token and multiplies it with the mean of the other side. No atomics: results are the
// same every time.
//
// Roofline at [32, 8, 196, 64] bfloat16, q and k read from memory once: 12.96 MB, 19.3 MFLOP: 3.87
// us expected on an H100 SXM (3.35 TB/s). The second kernel reads them again: from the second-level
// cache (50 MB) while they fit, so that larger batches are expected to take up to twice their
// bytes.
#include "kernels/cuda/attention_logits_mean.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vec.cuh"
#include "kernels/shapes.h"

namespace fiqa_fast::cuda {
namespace {

struct Tiles {
  // 64 channels of bfloat16 are 8 groups: 256 threads read 32 tokens at a time, each 16 bytes.
  int pool_threads = 256;
  // Of pool_heads<scalar> on a multiprocessor: 80 registers a thread. Left alone, ptxas takes 64
  // for 16-bit elements and spills; with wide loads it does well.
  int scalar_pool_blocks = 3;
  // One warp per token. Eight of them share the means in the first-level cache.
  int map_threads = 256;
};
constexpr Tiles kTiles;

// mean [d] of one head of one image, in shared memory slice by slice; every thread of the block
// calls it.
template <class T, bool kVector>
__device__ void pool(const AttentionSide& side, const T* tokens, int64_t head_dim, float* mean,
                     float (*slice_sums)[kTiles.pool_threads]) {
  constexpr int kThreads = kTiles.pool_threads, kWidth = kGroup<T>;
  const int64_t groups = divide_up(head_dim, kWidth);
  // Threads that share a group of columns take every slices'th token.
  const int span = groups < kThreads ? static_cast<int>(groups) : kThreads;
  const int slices = kThreads / span;
  const int slice = threadIdx.x / span;
  const float n = static_cast<float>(side.tokens);

  for (int64_t base = 0; base < groups; base += span) {
    const int64_t g = base + threadIdx.x % span;
    float sums[kWidth] = {};
    if (slice < slices && g < groups) {
      for (int64_t t = slice; t < side.tokens; t += slices) {
        float values[kWidth];
        load_group<kVector>(tokens + t * side.token_stride, g, side.channel_stride, head_dim, 0.0f,
                            values);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[i] += values[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) slice_sums[i][threadIdx.x] = sums[i];
    __syncthreads();
    if (slice == 0 && g < groups) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        float total = slice_sums[i][threadIdx.x];
        for (int s = 1; s < slices; ++s) total += slice_sums[i][threadIdx.x + s * span];
        if (g * kWidth + i < head_dim) mean[g * kWidth + i] = total / n;
      }
    }
    __syncthreads();  // mean is complete, and slice_sums may be overwritten
  }
}

template <class T>
__device__ const T* head_of(const AttentionSide& side, int64_t image, int64_t head) {
  return static_cast<const T*>(side.data) + image * side.image_stride + head * side.head_stride;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kTiles.pool_threads, kVector ? 0 : kTiles.scalar_pool_blocks)
    pool_heads(AttentionLogitsMeanArgs a) {
  __shared__ float slice_sums[kGroup<T>][kTiles.pool_threads];
  for (int64_t row = blockIdx.x; row < a.images * a.heads; row += gridDim.x) {
    const int64_t image = row / a.heads, head = row % a.heads;
    float* q_mean = a.q.mean + row * a.head_dim;
    float* k_mean = a.k.mean + row * a.head_dim;
    pool<T, kVector>(a.q, head_of<T>(a.q, image, head), a.head_dim, q_mean, slice_sums);
    pool<T, kVector>(a.k, head_of<T>(a.k, image, head), a.head_dim, k_mean, slice_sums);
    if (threadIdx.x < kWarp) {
      float dot = 0.0f;
      for (int64_t c = threadIdx.x; c < a.head_dim; c += kWarp)
        dot = fmaf(q_mean[c], k_mean[c], dot);
      dot = warp_sum(dot);
      if (threadIdx.x == 0) a.head_scores[row] = a.scale * dot;
    }
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kTiles.map_threads) maps(AttentionLogitsMeanArgs a) {
  constexpr int kWidth = kGroup<T>, kWarps = kTiles.map_threads / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t groups = divide_up(a.head_dim, kWidth);
  const int64_t per_image = a.q.tokens + a.k.tokens;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  const float factor = a.scale / static_cast<float>(a.heads);

  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       item < a.images * per_image; item += step) {
    const int64_t image = item / per_image;
    const bool is_q = item % per_image < a.q.tokens;
    const AttentionSide& side = is_q ? a.q : a.k;
    const int64_t token = is_q ? item % per_image : item % per_image - a.q.tokens;
    const float* mean = (is_q ? a.k : a.q).mean + image * a.heads * a.head_dim;
    const T* row =
        static_cast<const T*>(side.data) + image * side.image_stride + token * side.token_stride;

    // The lanes walk over the groups of all heads, as if these stood in one row.
    float dot = 0.0f;
    int64_t head = 0, g = lane;
    while (true) {
      while (g >= groups) {
        g -= groups;
        ++head;
      }
      if (head >= a.heads) break;
      float values[kWidth], factors[kWidth];
      load_group<kVector>(row + head * side.head_stride, g, side.channel_stride, a.head_dim, 0.0f,
                          values);
      const float* head_mean = mean + head * a.head_dim;
      if constexpr (kVector) {
        load_floats(head_mean + g * kWidth, factors);
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          factors[i] = g * kWidth + i < a.head_dim ? head_mean[g * kWidth + i] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) dot = fmaf(values[i], factors[i], dot);
      g += kWarp;
    }
    dot = warp_sum(dot);
    if (lane == 0) side.map[image * side.tokens + token] = factor * dot;
  }
}

template <class T>
bool is_aligned(const AttentionSide& side, int64_t head_dim) {
  const int64_t strides[] = {side.image_stride, side.head_stride, side.token_stride};
  const bool mean_is_aligned = reinterpret_cast<uintptr_t>(side.mean) % 16 == 0;
  return mean_is_aligned &&
         rows_are_aligned(side.data, sizeof(T), head_dim, side.channel_stride, strides, 3);
}

template <class T, bool kVector>
cudaError_t launch_as(const AttentionLogitsMeanArgs& a, cudaStream_t stream) {
  const cudaError_t error = launch(pool_heads<T, kVector>, blocks_for(a.images * a.heads),
                                   kTiles.pool_threads, 0, stream, a);
  if (error != cudaSuccess) return error;
  const int64_t tokens = a.images * (a.q.tokens + a.k.tokens);
  return launch(maps<T, kVector>, blocks_for(divide_up(tokens, kTiles.map_threads / kWarp)),
                kTiles.map_threads, 0, stream, a);
}

template <class T>
cudaError_t launch_typed(const AttentionLogitsMeanArgs& a, cudaStream_t stream) {
  const bool aligned = is_aligned<T>(a.q, a.head_dim) && is_aligned<T>(a.k, a.head_dim);
  return aligned ? launch_as<T, true>(a, stream) : launch_as<T, false>(a, stream);
}

}  // namespace

cudaError_t launch_attention_logits_mean(const AttentionLogitsMeanArgs& a, cudaStream_t stream) {
  return for_dtype(a.dtype,
                   [&](auto element) { return launch_typed<decltype(element)>(a, stream); });
}

}  // namespace fiqa_fast::cuda
