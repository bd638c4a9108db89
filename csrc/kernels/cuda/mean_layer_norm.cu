// SPDX-License-Identifier: Apache-2.0
// The mean over tokens of LayerNorm(x), or of LayerNorm(x + residual), and each normed token's
// product with u.
//
// A block takes a chunk of the tokens of one image. First one warp per token finds its mean and
// standard deviation, and on the way what u gets of it, with LayerNorm's weight g and bias b folded
// into u by a kernel before:
//
//   rstd (sum_d (x - mean) (g_d u_d)) + sum_d b_d u_d
//
// Then a thread owns a group of columns and adds the chunk's normalised tokens, which are read
// again from cache. A last kernel adds the chunks in order. No atomics: results are the same every
// time.
//
// Roofline at [32, 196, 512] bfloat16, read from memory once: 6.49 MB, 28.9 MFLOP: 1.94 us expected
// on an H100 SXM (3.35 TB/s). A residual doubles the bytes; a map adds a launch and a reading of u
// from cache.
#include "kernels/cuda/mean_layer_norm.h"

#include <type_traits>

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

constexpr int kWarps = kTiles.threads / kWarp;

// The tokens of an image from one on, as they are normalised: x, or x + residual, unless Residual
// is void.
template <class T, class Residual, bool kVector>
struct Tokens {
  // The group that the sum would have, were it in memory as float32: results are the same bits.
  static constexpr int kWidth = kGroup<std::conditional_t<std::is_void_v<Residual>, T, float>>;

  const MeanLayerNormArgs& a;
  const T* x;
  const Residual* residual;

  __device__ Tokens(const MeanLayerNormArgs& args, int64_t image, int64_t first)
      : a(args),
        x(static_cast<const T*>(a.x) + image * a.image_stride + first * a.token_stride),
        residual(static_cast<const Residual*>(a.residual)) {
    if constexpr (!std::is_void_v<Residual>)
      residual += image * a.residual_image_stride + first * a.residual_token_stride;
  }

  __device__ void load(int token, int64_t group, float fill, float (&out)[kWidth]) const {
    load_group<kVector>(x + token * a.token_stride, group, a.channel_stride, a.channels, fill, out);
    if constexpr (!std::is_void_v<Residual>) {
      float more[kWidth];
      load_group<kVector>(residual + token * a.residual_token_stride, group,
                          a.residual_channel_stride, a.channels, 0.0f, more);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) out[i] += more[i];
    }
  }
};

// One warp per image.
__global__ void __launch_bounds__(kTiles.threads) fold(MeanLayerNormArgs a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t padded = MeanLayerNormArgs::padded(a.channels);
  for (int64_t image = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       image < a.images; image += static_cast<int64_t>(gridDim.x) * kWarps) {
    fold_norm(a.u + image * a.u_image_stride, a.u_channel_stride, a, padded, lane,
              a.folded + image * padded, a.folded_sum + image, a.constant + image);
  }
}

template <class T, class Residual, bool kVector>
__global__ void __launch_bounds__(kTiles.threads)
    partial_sums(MeanLayerNormArgs a, int64_t chunks) {
  using Chunk = Tokens<T, Residual, kVector>;
  constexpr int kThreads = kTiles.threads, kTokens = kTiles.tokens_per_chunk;
  constexpr int kWidth = Chunk::kWidth;
  __shared__ float row_mean[kTokens], row_rest[kTokens], row_rstd[kTokens];
  __shared__ float slice_sums[kWidth][kThreads];

  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t groups = divide_up(a.channels, kWidth);
  // Threads that share a group of columns take every slices'th token.
  const int span = groups < kThreads ? static_cast<int>(groups) : kThreads;
  const int slices = kThreads / span;
  const int slice = threadIdx.x / span;

  for (int64_t item = blockIdx.x; item < a.images * chunks; item += gridDim.x) {
    const int64_t image = item / chunks;
    const int64_t first = item % chunks * kTokens;
    const int count = a.tokens - first < kTokens ? static_cast<int>(a.tokens - first) : kTokens;
    const Chunk tokens(a, image, first);
    const float* folded =
        a.map ? a.folded + image * MeanLayerNormArgs::padded(a.channels) : nullptr;

    for (int r = warp; r < count; r += kWarps) {
      float dot = 0.0f;
      const auto load = [&](int64_t group, float fill, float (&out)[kWidth]) {
        tokens.load(r, group, fill, out);
      };
      const auto add_to_dot = [&](int64_t group, const float (&centred)[kWidth]) {
        if (!folded) return;
        float factors[kWidth];
        load_floats(folded + group * kWidth, factors);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) dot = fmaf(centred[i], factors[i], dot);
      };
      const RowStatistics row = row_statistics<kWidth>(load, a.channels, a.eps, lane, add_to_dot);
      if (folded) dot = warp_sum(dot) - row.rest * a.folded_sum[image];
      if (lane == 0) {
        row_mean[r] = row.mean;
        row_rest[r] = row.rest;
        row_rstd[r] = row.rstd;
        if (folded) a.map[image * a.tokens + first + r] = row.rstd * dot + a.constant[image];
      }
    }
    __syncthreads();

    for (int64_t base = 0; base < groups; base += span) {
      const int64_t g = base + threadIdx.x % span;
      float values[kWidth], sums[kWidth] = {};
      if (slice < slices && g < groups) {
        for (int r = slice; r < count; r += slices) {
          tokens.load(r, g, 0.0f, values);
#pragma unroll
          for (int i = 0; i < kWidth; ++i)
            sums[i] = fmaf(values[i] - row_mean[r] - row_rest[r], row_rstd[r], sums[i]);
        }
      }
      // What overwrites these sums needs no barrier of its own: where there are more columns than
      // threads, there is one slice, and a thread reads its own sums alone; and before the next
      // chunk's sums stands the barrier behind its statistics.
#pragma unroll
      for (int i = 0; i < kWidth; ++i) slice_sums[i][threadIdx.x] = sums[i];
      __syncthreads();
      if (slice == 0 && g < groups) {
        float* out = a.partial + item * MeanLayerNormArgs::padded(a.channels) + g * kWidth;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          float total = slice_sums[i][threadIdx.x];
          for (int s = 1; s < slices; ++s) total += slice_sums[i][threadIdx.x + s * span];
          out[i] = total;
        }
      }
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
    const int64_t padded = MeanLayerNormArgs::padded(a.channels);
    const float* partial = a.partial + image * chunks * padded + channel;
    float value = 0.0f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) value += partial[chunk * padded];
    value /= static_cast<float>(a.tokens);
    if (a.weight.data) value *= element(a.weight, channel);
    if (a.bias.data) value += element(a.bias, channel);
    a.mean[i] = value;
  }
}

template <class T, class Residual>
cudaError_t launch_typed(const MeanLayerNormArgs& a, cudaStream_t stream) {
  const int64_t strides[] = {a.image_stride, a.token_stride};
  bool aligned = rows_are_aligned(a.x, sizeof(T), a.channels, a.channel_stride, strides, 2);
  if constexpr (!std::is_void_v<Residual>) {
    const int64_t residual_strides[] = {a.residual_image_stride, a.residual_token_stride};
    aligned = aligned && rows_are_aligned(a.residual, sizeof(Residual), a.channels,
                                          a.residual_channel_stride, residual_strides, 2);
  }
  cudaError_t error = cudaSuccess;
  if (a.map)
    error = launch(fold, blocks_for(divide_up(a.images, kWarps)), kTiles.threads, 0, stream, a);
  if (error != cudaSuccess) return error;
  const int64_t chunks = a.chunks();
  error = launch(aligned ? partial_sums<T, Residual, true> : partial_sums<T, Residual, false>,
                 blocks_for(a.images * chunks), kTiles.threads, 0, stream, a, chunks);
  if (error != cudaSuccess) return error;
  return launch(combine, blocks_for(divide_up(a.images * a.channels, kTiles.combine_threads)),
                kTiles.combine_threads, 0, stream, a, chunks);
}

}  // namespace

int64_t MeanLayerNormArgs::chunks() const { return divide_up(tokens, kTiles.tokens_per_chunk); }

cudaError_t launch_mean_layer_norm(const MeanLayerNormArgs& a, cudaStream_t stream) {
  return for_dtype(a.dtype, [&](auto x) {
    using T = decltype(x);
    if (!a.residual) return launch_typed<T, void>(a, stream);
    if (a.residual_dtype == a.dtype) return launch_typed<T, T>(a, stream);
    if constexpr (std::is_same_v<T, float>) {
      if (a.residual_dtype == DType::kBFloat16) return launch_typed<float, BFloat16>(a, stream);
      return launch_typed<float, Float16>(a, stream);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace fiqa_fast::cuda
