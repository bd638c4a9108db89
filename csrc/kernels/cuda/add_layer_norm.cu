// SPDX-License-Identifier: Apache-2.0
// x + residual and its LayerNorm, with one warp per token: it adds and stores the token, finds its
// mean and standard deviation, and normalises it. A lane reads again only what it wrote itself, so
// no barrier is needed, and a token of 512 channels is 2 KiB, still in the first-level cache.
//
// Roofline at [8, 144, 512] bfloat16, all of it in memory: 7.08 MB, 6.5 MFLOP: 2.11 us expected on
// an H100 SXM (3.35 TB/s). 1152 tokens are 144 blocks, little more than one for each of 132
// multiprocessors, so that a launch's few microseconds and the latency of three readings in a row
// will show; from some 8 times as many tokens on, bytes are what counts.
#include "kernels/cuda/add_layer_norm.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layer_norm.cuh"

namespace fiqa_fast::cuda {
namespace {

struct Tiles {
  // 8 warps, a token each, and no shared memory, as for layer_norm_dot.
  int threads = 256;
  // On a multiprocessor: up to 64 registers a thread. Left alone, ptxas takes fewer and spills on
  // some devices; 1024 threads with four loads of 16 bytes still keep 64 KiB in flight.
  int blocks = 4;
};
constexpr Tiles kTiles;
constexpr int kWarps = kTiles.threads / kWarp;
// Elements that a lane takes at a time: 16 bytes of the sum.
constexpr int kWidth = kGroup<float>;

__device__ inline void store_element(const AddLayerNormArgs& a, int64_t at, float value) {
  switch (a.normed_dtype) {
    case DType::kBFloat16:
      static_cast<BFloat16*>(a.normed)[at] = to_bfloat16(value);
      break;
    case DType::kFloat16:
      static_cast<Float16*>(a.normed)[at] = to_float16(value);
      break;
    default:
      static_cast<float*>(a.normed)[at] = value;
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kTiles.threads, kTiles.blocks) add_and_norm(AddLayerNormArgs a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t groups = divide_up(a.channels, kWidth);
  // What row_statistics reads: the sum, as it was written.
  LayerNormInput in = {};
  in.channels = a.channels;
  in.channel_stride = 1;
  in.eps = a.eps;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       item < a.images * a.tokens; item += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t image = item / a.tokens, token = item % a.tokens;
    const float* x = a.x + image * a.x_image_stride + token * a.x_token_stride;
    const T* residual = static_cast<const T*>(a.residual) + image * a.residual_image_stride +
                        token * a.residual_token_stride;
    float* sum = a.sum + item * a.channels;
    // Unrolled as far as registers last: more of it spills.
#pragma unroll 2
    for (int64_t g = lane; g < groups; g += kWarp) {
      const int64_t first = g * kWidth;
      float left[kWidth], right[kWidth];
      load_group<kVector>(x, g, a.x_channel_stride, a.channels, 0.0f, left);
      load_group<kVector>(residual, g, a.residual_channel_stride, a.channels, 0.0f, right);
      if constexpr (kVector) {
        *reinterpret_cast<float4*>(sum + first) = {left[0] + right[0], left[1] + right[1],
                                                   left[2] + right[2], left[3] + right[3]};
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
          if (first + i < a.channels) sum[first + i] = left[i] + right[i];
      }
    }
    const RowStatistics row =
        row_statistics<kVector>(sum, in, lane, [](int64_t, const float (&)[kWidth]) {});
#pragma unroll 1
    for (int64_t g = lane; g < groups; g += kWarp) {
      float values[kWidth];
      load_group<kVector>(sum, g, 1, a.channels, 0.0f, values);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int64_t c = g * kWidth + i;
        if (!kVector && c >= a.channels) break;
        const float value = (values[i] - row.mean - row.rest) * row.rstd;
        const float weight = a.weight.data ? element(a.weight, c) : 1.0f;
        const float bias = a.bias.data ? element(a.bias, c) : 0.0f;
        store_element(a, item * a.channels + c, fmaf(value, weight, bias));
      }
    }
  }
}

template <class T>
cudaError_t launch_typed(const AddLayerNormArgs& a, cudaStream_t stream) {
  const int64_t x_strides[] = {a.x_image_stride, a.x_token_stride};
  const int64_t residual_strides[] = {a.residual_image_stride, a.residual_token_stride};
  const bool aligned =
      rows_are_aligned(a.x, sizeof(float), a.channels, a.x_channel_stride, x_strides, 2) &&
      rows_are_aligned(a.residual, sizeof(T), a.channels, a.residual_channel_stride,
                       residual_strides, 2);
  return launch(aligned ? add_and_norm<T, true> : add_and_norm<T, false>,
                blocks_for(divide_up(a.images * a.tokens, kWarps)), kTiles.threads, 0, stream, a);
}

}  // namespace

cudaError_t launch_add_layer_norm(const AddLayerNormArgs& a, cudaStream_t stream) {
  return for_dtype(a.residual_dtype,
                   [&](auto element) { return launch_typed<decltype(element)>(a, stream); });
}

}  // namespace fiqa_fast::cuda
