// SPDX-License-Identifier: Apache-2.0
// sum_n sum_d LayerNorm(x)[n, d] w[n, d], with one warp per row everywhere.
//
// The first kernel folds LayerNorm's weight g and bias b into w, once for all images. The second
// finds what each token of each image adds, reading x once from memory and once more from cache:
//
//   rstd (sum_d (x - mean) (g_d w[n, d])) + sum_d b_d w[n, d]
//
// The third adds the tokens of an image. No atomics: results are the same every time.
//
// Roofline at [32, 144, 512] bfloat16, read from memory once: 5.02 MB, 16.5 MFLOP: 1.50 us expected
// on an H100 SXM (3.35 TB/s). So little that its three launches, a few microseconds each, will show
// first; x is usually still in the second-level cache (50 MB) then, which only helps.
#include "kernels/cuda/layer_norm_dot.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layer_norm.cuh"

namespace fiqa_fast::cuda {
namespace {

struct Tiles {
  // 8 warps, a token each, and no shared memory: 144 tokens of 32 images are 576 blocks, enough to
  // hide the latency of the two readings on any device.
  int threads = 256;
  // Of token_values<vector> on a multiprocessor: 48 registers a thread. Left alone, ptxas takes 40
  // for float32 and spills; without wide loads it does well.
  int vector_blocks = 5;
};
constexpr Tiles kTiles;
constexpr int kWarps = kTiles.threads / kWarp;

// The row that a warp begins with, and how many there are between two of its rows.
__device__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
}
__device__ int64_t row_step() { return static_cast<int64_t>(gridDim.x) * kWarps; }

__global__ void __launch_bounds__(kTiles.threads) fold(LayerNormDotArgs a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t padded = LayerNormDotArgs::padded(a.channels);
  for (int64_t n = first_row(); n < a.tokens; n += row_step()) {
    fold_norm(a.w + n * a.w_token_stride, a.w_channel_stride, a, padded, lane,
              a.folded + n * padded, a.folded_sum + n, a.constant + n);
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kTiles.threads, kVector ? kTiles.vector_blocks : 0)
    token_values(LayerNormDotArgs a) {
  constexpr int kWidth = kGroup<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t padded = LayerNormDotArgs::padded(a.channels);
  for (int64_t item = first_row(); item < a.images * a.tokens; item += row_step()) {
    const int64_t image = item / a.tokens, n = item % a.tokens;
    const T* x = static_cast<const T*>(a.x) + image * a.image_stride + n * a.token_stride;
    const float* folded = a.folded + n * padded;
    float dot = 0.0f;
    const RowStatistics row =
        row_statistics<kVector>(x, a, lane, [&](int64_t group, const float (&centred)[kWidth]) {
          float factors[kWidth];
          load_floats(folded + group * kWidth, factors);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) dot = fmaf(centred[i], factors[i], dot);
        });
    dot = warp_sum(dot) - row.rest * a.folded_sum[n];
    if (lane == 0) a.token_values[item] = row.rstd * dot + a.constant[n];
  }
}

__global__ void __launch_bounds__(kTiles.threads) combine(LayerNormDotArgs a) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t image = first_row(); image < a.images; image += row_step()) {
    float total = 0.0f;
    for (int64_t n = lane; n < a.tokens; n += kWarp) total += a.token_values[image * a.tokens + n];
    total = warp_sum(total);
    if (lane == 0) a.out[image] = total;
  }
}

int blocks_for_rows(int64_t rows) { return blocks_for(divide_up(rows, kWarps)); }

template <class T>
cudaError_t launch_typed(const LayerNormDotArgs& a, cudaStream_t stream) {
  cudaError_t error = launch(fold, blocks_for_rows(a.tokens), kTiles.threads, 0, stream, a);
  if (error != cudaSuccess) return error;
  const int64_t strides[] = {a.image_stride, a.token_stride};
  const bool aligned = rows_are_aligned(a.x, sizeof(T), a.channels, a.channel_stride, strides, 2);
  error = launch(aligned ? token_values<T, true> : token_values<T, false>,
                 blocks_for_rows(a.images * a.tokens), kTiles.threads, 0, stream, a);
  if (error != cudaSuccess) return error;
  return launch(combine, blocks_for_rows(a.images), kTiles.threads, 0, stream, a);
}

}  // namespace

cudaError_t launch_layer_norm_dot(const LayerNormDotArgs& a, cudaStream_t stream) {
  return for_dtype(a.dtype,
                   [&](auto element) { return launch_typed<decltype(element)>(a, stream); });
}

}  // namespace fiqa_fast::cuda
