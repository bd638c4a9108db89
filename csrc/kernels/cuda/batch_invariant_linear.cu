// SPDX-License-Identifier: Apache-2.0
// x W^T + b for few rows x, in which a row's result never depends on the rows beside it.
//
// The first kernel multiplies a tile of rows with a tile of weights over one chunk of K, staged in
// shared memory: every sum belongs to one thread and runs in order. The second adds the chunks of
// an output, in order, and the bias. The grid follows from the shape, but no sum follows from it.
//
// Roofline of an embedding head, [16, 73728, 512] bfloat16: 80.25 MB, 1208.0 MFLOP: 23.96 us
// expected on an H100 SXM (3.35 TB/s). From 22 rows on, arithmetic (67 TFLOP/s in float32) would
// take longer than memory. This kernel's own limit comes first: a 2 x 2 square of sums loads from
// shared memory once per multiply-add, and every tile has 32 rows, which makes 36 x 16 blocks of 8
// x 2048 x 4 loads of a warp, one per cycle on each of 132 multiprocessors: 163 us at 1.755 GHz.
// Larger squares would divide that.
#include "kernels/cuda/batch_invariant_linear.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vec.cuh"

namespace fiqa_fast::cuda {
namespace {

struct Tiles {
  // Weights are what has to be read, so few rows cost as much as one: 32 rows by 32 outputs, a
  // 2 x 2 square of sums per thread, and 64 inputs at a time (16 KiB of shared memory).
  int threads = 256;
  int rows = 32;
  int outputs = 32;
  int inputs = 64;
  // Of combine on a multiprocessor: 80 registers a thread, for ptxas spills at 64.
  int combine_blocks = 3;
};
constexpr Tiles kTiles;
// An odd stride: threads that read one column of the tile meet different banks.
constexpr int kStride = kTiles.inputs + 1;

// Stages `count` rows of a matrix, inputs [k, k + kTiles.inputs) below `end`; zeros beyond either.
template <bool kVector, class T>
__device__ void stage(float (*tile)[kStride], int tile_rows, const T* matrix, int64_t first_row,
                      int64_t rows, int64_t row_stride, int64_t stride, int64_t k, int64_t end) {
  constexpr int kWidth = kGroup<T>;
  constexpr int kGroups = kTiles.inputs / kWidth;
  for (int i = threadIdx.x; i < tile_rows * kGroups; i += kTiles.threads) {
    const int row = i / kGroups, group = i % kGroups;
    float values[kWidth] = {};
    // With kVector, chunks end where groups do, so a group is inside or outside as a whole.
    if (first_row + row < rows && k + group * kWidth < end)
      load_group<kVector>(matrix + (first_row + row) * row_stride + k * stride, group, stride,
                          end - k, 0.0f, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) tile[row][group * kWidth + j] = values[j];
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kTiles.threads) products(BatchInvariantLinearArgs a) {
  __shared__ float x_tile[kTiles.rows][kStride];
  __shared__ float weight_tile[kTiles.outputs][kStride];
  // Outputs of a warp are next to one another; its two rows are read by all lanes at once.
  const int column = threadIdx.x % 16, line = threadIdx.x / 16;
  const int64_t row_tiles = divide_up(a.rows, kTiles.rows);
  const int64_t output_tiles = divide_up(a.outputs, kTiles.outputs);
  for (int64_t item = blockIdx.x; item < row_tiles * output_tiles * a.chunks(); item += gridDim.x) {
    // Blocks that share weights follow one another.
    const int64_t first_row = item % row_tiles * kTiles.rows;
    const int64_t first_output = item / row_tiles % output_tiles * kTiles.outputs;
    const int64_t chunk = item / row_tiles / output_tiles;
    const int64_t begin = chunk * BatchInvariantLinearArgs::kInputsPerChunk;
    const int64_t end = begin + BatchInvariantLinearArgs::kInputsPerChunk < a.inputs
                            ? begin + BatchInvariantLinearArgs::kInputsPerChunk
                            : a.inputs;
    float sums[2][2] = {};
    for (int64_t k = begin; k < end; k += kTiles.inputs) {
      stage<kVector>(x_tile, kTiles.rows, a.x, first_row, a.rows, a.x_row_stride, a.x_stride, k,
                     end);
      stage<kVector>(weight_tile, kTiles.outputs, static_cast<const T*>(a.weight), first_output,
                     a.outputs, a.weight_row_stride, a.weight_stride, k, end);
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kTiles.inputs; ++i) {
        const float x[2] = {x_tile[line][i], x_tile[line + 16][i]};
        const float w[2] = {weight_tile[column][i], weight_tile[column + 16][i]};
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int o = 0; o < 2; ++o) sums[r][o] = fmaf(x[r], w[o], sums[r][o]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int o = 0; o < 2; ++o) {
        const int64_t row = first_row + line + 16 * r, output = first_output + column + 16 * o;
        if (row < a.rows && output < a.outputs)
          a.partial[(chunk * a.rows + row) * a.outputs + output] = sums[r][o];
      }
    }
  }
}

__global__ void __launch_bounds__(kTiles.threads, kTiles.combine_blocks)
    combine(BatchInvariantLinearArgs a) {
  const int64_t count = a.rows * a.outputs;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kTiles.threads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kTiles.threads) {
    float total = a.partial[i];
    for (int64_t chunk = 1; chunk < a.chunks(); ++chunk) total += a.partial[chunk * count + i];
    if (a.bias.data) total += element(a.bias, i % a.outputs);
    a.out[i] = total;
  }
}

template <class T>
cudaError_t launch_typed(const BatchInvariantLinearArgs& a, cudaStream_t stream) {
  const int64_t items =
      divide_up(a.rows, kTiles.rows) * divide_up(a.outputs, kTiles.outputs) * a.chunks();
  // Either matrix's groups have to be whole where the other's are.
  const bool aligned =
      rows_are_aligned(a.x, sizeof(float), a.inputs, a.x_stride, &a.x_row_stride, 1) &&
      rows_are_aligned(a.weight, sizeof(T), a.inputs, a.weight_stride, &a.weight_row_stride, 1);
  const cudaError_t error = launch(aligned ? products<T, true> : products<T, false>,
                                   blocks_for(items), kTiles.threads, 0, stream, a);
  if (error != cudaSuccess) return error;
  return launch(combine, blocks_for(divide_up(a.rows * a.outputs, kTiles.threads)), kTiles.threads,
                0, stream, a);
}

}  // namespace

cudaError_t launch_batch_invariant_linear(const BatchInvariantLinearArgs& a, cudaStream_t stream) {
  return for_dtype(a.dtype,
                   [&](auto element) { return launch_typed<decltype(element)>(a, stream); });
}

}  // namespace fiqa_fast::cuda
