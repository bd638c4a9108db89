// SPDX-License-Identifier: Apache-2.0
// The mean over tokens of LayerNorm(x).
//
// A block takes a chunk of the tokens of one image. First one warp per token finds its mean and
// standard deviation; then a thread owns 16 bytes of columns and adds the chunk's normalised
// tokens, which are read again from cache. A second kernel adds the chunks in order. No atomics:
// results are the same every time.
#include "kernels/cuda/mean_layer_norm.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layer_norm.cuh"

namespace fiqa_fast::cuda {
namespace {

struct Tiles {
  // 32 tokens of 512 bfloat16 channels are 32 KiB: they stay in the first-level cache between the
  // readings, and 196 tokens make 7 blocks per image. Partial sums cost 1/16 of the bytes of x.
  int tokens_per_chunk = 32;
  // 8 warps: 4 tokens each in the first step; 512 channels of bfloat16 are 64 groups, so that 4
  // slices of the tokens keep all threads busy in the second.
  int threads = 256;
  int combine_threads = 256;
};
constexpr Tiles kTiles;

int64_t chunks_of(const MeanLayerNormArgs& a) {
  return divide_up(a.tokens, kTiles.tokens_per_chunk);
}

// Whole groups for either kind of dtype.
__host__ __device__ int64_t padded(int64_t channels) { return round_up(channels, 8); }

template <class T, bool kVector>
__global__ void __launch_bounds__(kTiles.threads)
    partial_sums(MeanLayerNormArgs a, int64_t chunks) {
  constexpr int kThreads = kTiles.threads, kChunk = kTiles.tokens_per_chunk, kWidth = kGroup<T>;
  __shared__ float row_mean[kChunk], row_rest[kChunk], row_rstd[kChunk];
  __shared__ float slice_sums[kWidth][kThreads];

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t groups = divide_up(a.channels, kWidth);
  // Threads that share a group of columns take every slices'th token.
  const int span = groups < kThreads ? static_cast<int>(groups) : kThreads;
  const int slices = kThreads / span;
  const int slice = threadIdx.x / span;

  for (int64_t item = blockIdx.x; item < a.images * chunks; item += gridDim.x) {
    const int64_t image = item / chunks;
    const int64_t first = item % chunks * kChunk;
    const int count = a.tokens - first < kChunk ? static_cast<int>(a.tokens - first) : kChunk;
    const T* rows = static_cast<const T*>(a.x) + image * a.image_stride + first * a.token_stride;

    for (int r = warp; r < count; r += kThreads / kWarp) {
      const RowStatistics row = row_statistics<kVector>(rows + r * a.token_stride, a, lane,
                                                        [](int64_t, const float (&)[kWidth]) {});
      if (lane == 0) {
        row_mean[r] = row.mean;
        row_rest[r] = row.rest;
        row_rstd[r] = row.rstd;
      }
    }
    __syncthreads();

    for (int64_t base = 0; base < groups; base += span) {
      const int64_t g = base + threadIdx.x % span;
      float values[kWidth], sums[kWidth] = {};
      if (slice < slices && g < groups) {
        for (int r = slice; r < count; r += slices) {
          load_group<kVector>(rows + r * a.token_stride, g, a.channel_stride, a.channels, 0.0f,
                              values);
#pragma unroll
          for (int i = 0; i < kWidth; ++i)
            sums[i] = fmaf(values[i] - row_mean[r] - row_rest[r], row_rstd[r], sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) slice_sums[i][threadIdx.x] = sums[i];
      __syncthreads();
      if (slice == 0 && g < groups) {
        float* out = a.partial + item * padded(a.channels) + g * kWidth;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          float total = slice_sums[i][threadIdx.x];
          for (int s = 1; s < slices; ++s) total += slice_sums[i][threadIdx.x + s * span];
          out[i] = total;
        }
      }
      __syncthreads();  // before the next columns, or the next chunk's rows, overwrite shared
                        // memory
    }
  }
}

__global__ void __launch_bounds__(kTiles.combine_threads)
    combine(MeanLayerNormArgs a, int64_t chunks) {
  const int64_t size = a.images * a.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step) {
    const int64_t image = i / a.channels, channel = i % a.channels;
    const float* partial = a.partial + image * chunks * padded(a.channels) + channel;
    float value = 0.0f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) value += partial[chunk * padded(a.channels)];
    value /= static_cast<float>(a.tokens);
    if (a.weight.data) value *= element(a.weight, channel);
    if (a.bias.data) value += element(a.bias, channel);
    a.out[i] = value;
  }
}

template <class T>
cudaError_t launch_typed(const MeanLayerNormArgs& a, cudaStream_t stream) {
  const int64_t chunks = chunks_of(a);
  const int64_t strides[] = {a.image_stride, a.token_stride};
  const bool aligned = rows_are_aligned(a.x, sizeof(T), a.channels, a.channel_stride, strides, 2);
  const cudaError_t error =
      launch(aligned ? partial_sums<T, true> : partial_sums<T, false>,
             blocks_for(a.images * chunks), kTiles.threads, 0, stream, a, chunks);
  if (error != cudaSuccess) return error;
  return launch(combine, blocks_for(divide_up(a.images * a.channels, kTiles.combine_threads)),
                kTiles.combine_threads, 0, stream, a, chunks);
}

}  // namespace

int64_t mean_layer_norm_scratch(const MeanLayerNormArgs& a) {
  return a.images * chunks_of(a) * padded(a.channels);
}

cudaError_t launch_mean_layer_norm(const MeanLayerNormArgs& a, cudaStream_t stream) {
  return for_dtype(a.dtype,
                   [&](auto element) { return launch_typed<decltype(element)>(a, stream); });
}

}  // namespace fiqa_fast::cuda
