// SPDX-License-Identifier: Apache-2.0
// Reductions of all attention logits s q_i . k_j (the ablations of ATTN-FIQA, arXiv 2604.22841)
// which never stores one: a block computes 64 queries by all keys, tile by tile in registers
// (logits_tile.cuh), and what a reduction needs again is computed again.
//
//   moments    mean, spread, maximum, minimum, log-sum-exp and entropy of every row, and sums of
//              columns over 64 queries; then maps, heads and images from these
//   deviations squares of the doubly centred logits, which needs the means of rows and columns
//   count      how many logits of an image have which digit; eight times, for the median
//              (logits_median.cuh)
//
// Every row belongs to one warp and runs over the keys in order; sums of columns are added in the
// order of the chunks; nothing is atomic. So results are the same every time.
//
// Roofline at [32, 8, 196, 64] bfloat16, of the products: 12.90 MB, 1258.8 MFLOP: 3.85 us expected
// on an H100 SXM (3.35 TB/s). That is not what these kernels can reach: the machine code for sm_90,
// with all set-up, has some 3,000 instructions for a thread's 32 logits with moments and softmax,
// and 2,000 for a digit of the median. The device issues some 30e12 a second, for all lanes, so
// that 9.8 million logits are expected to take about 30 us, and 8 x 20. Larger tiles, TMA or wgmma
// would shorten none of that.
#include "kernels/cuda/attention_logits_stats.h"

#include <math.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logits_median.cuh"
#include "kernels/cuda/logits_tile.cuh"

namespace fiqa_fast::cuda {
namespace {

struct Tiles {
  // One thread per row of a head or per element of a map: little work, whatever the number.
  int threads = 256;
};
constexpr Tiles kTiles;

// What is known of some logits of a row.
struct Moments {
  float count = 0.0f, mean = 0.0f;
  float squares = 0.0f;  // of the deviations from the mean
  float max = -INFINITY, min = INFINITY;
  float exp_sum = 0.0f;  // sum of e = exp(x - max)
  float exp_dot = 0.0f;  // sum of e (x - max)
};

// NaN wins, as in torch.
__device__ float larger(float a, float b) { return a > b || a != a ? a : b; }
__device__ float smaller(float a, float b) { return a < b || a != a ? a : b; }

// Of squares, which rounding may take below zero; NaN passes.
__device__ float not_negative(float value) { return value < 0.0f ? 0.0f : value; }

// Refers the exponentials to a larger maximum.
__device__ void raise_max(Moments& m, float max) {
  if (m.max > -INFINITY) {
    const float step = m.max - max, factor = expf(step);
    m.exp_dot = fmaf(m.exp_sum, step, m.exp_dot) * factor;
    m.exp_sum *= factor;
  }
  m.max = max;
}

// By Chan et al., which does not cancel where the mean is far from zero.
__device__ void merge(Moments& a, float count, float mean, float squares) {
  const float total = a.count + count;
  const float delta = mean - a.mean, share = count / total;
  a.squares += fmaf(delta * delta, a.count * share, squares);
  a.mean = fmaf(delta, share, a.mean);
  a.count = total;
}

__device__ Moments from_lane(const Moments& m, int bits) {
  constexpr uint32_t kAll = 0xffffffffu;
  Moments other;
  other.count = __shfl_xor_sync(kAll, m.count, bits);
  other.mean = __shfl_xor_sync(kAll, m.mean, bits);
  other.squares = __shfl_xor_sync(kAll, m.squares, bits);
  other.max = __shfl_xor_sync(kAll, m.max, bits);
  other.min = __shfl_xor_sync(kAll, m.min, bits);
  other.exp_sum = __shfl_xor_sync(kAll, m.exp_sum, bits);
  other.exp_dot = __shfl_xor_sync(kAll, m.exp_dot, bits);
  return other;
}

using WarpColumns = float[kTileWarps][kLogitsTiles.keys];

struct MomentsVisitor {
  const AttentionLogitsStatsArgs& a;
  const Item& item;
  WarpColumns& columns;
  Moments rows[2];

  __device__ void tile(const Logits& logits, int64_t first_key) {
    const Valid valid(a.q.tokens - item.first_query, a.k.tokens - first_key);
#pragma unroll
    for (int i = 0; i < 2; ++i) add_row(rows[i], logits, i, valid);
    if (logits::asks_moments(a.stats)) add_columns(logits, valid);
  }

  __device__ void add_row(Moments& row, const Logits& logits, int i, const Valid& valid) {
    float count = 0.0f, sum = 0.0f, max = row.max;
#pragma unroll
    for (int n = 0; n < kKeyGroups; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (!valid.key(n, j)) continue;
        const float x = logits[n][2 * i + j];
        count += 1.0f;
        sum += x;
        max = larger(x, max);
        row.min = smaller(x, row.min);
      }
    }
    if (count == 0.0f) return;
    raise_max(row, max);
    const float mean = sum / count;
    // The mean is rounded: what is left of it is found by the second reading.
    float squares = 0.0f, rest = 0.0f, exp_sum = 0.0f, exp_dot = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeyGroups; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (!valid.key(n, j)) continue;
        const float x = logits[n][2 * i + j];
        rest += x - mean;
        squares = fmaf(x - mean, x - mean, squares);
        if (!logits::asks_softmax(a.stats)) continue;
        // Below a finite maximum exp(-inf) is 0; where all are -inf, so is their maximum.
        const float below = max == -INFINITY ? x : x - max, e = expf(below);
        exp_sum += e;
        exp_dot = fmaf(e, below, exp_dot);
      }
    }
    row.exp_sum += exp_sum;
    row.exp_dot += exp_dot;
    rest /= count;
    merge(row, count, mean + rest, not_negative(fmaf(-count * rest, rest, squares)));
  }

  // Sums over the warp's 16 queries: of a thread's 16 keys by eight lanes, each of which keeps half
  // of the keys three times.
  __device__ void add_columns(const Logits& logits, const Valid& valid) {
    float sums[kKeyGroups][2];
#pragma unroll
    for (int n = 0; n < kKeyGroups; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        sums[n][j] =
            (valid.query(0) ? logits[n][j] : 0.0f) + (valid.query(1) ? logits[n][2 + j] : 0.0f);
    const int lane = threadIdx.x % kWarp;
    int first = 0;
#pragma unroll
    for (int half = kKeyGroups / 2; half > 0; half /= 2) {
      const int bit = 4 * half;
      const bool upper = lane & bit;
#pragma unroll
      for (int n = 0; n < half; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float kept = upper ? sums[half + n][j] : sums[n][j];
          const float sent = upper ? sums[n][j] : sums[half + n][j];
          sums[n][j] = kept + __shfl_xor_sync(0xffffffffu, sent, bit);
        }
      }
      if (upper) first += half;
    }
    float* warp = columns[threadIdx.x / kWarp];
    warp[key_of(first, 0)] = sums[0][0];
    warp[key_of(first, 1)] = sums[0][1];
  }

  __device__ void after(int64_t first_key) {
    const int64_t key = first_key + threadIdx.x;
    if (!logits::asks_moments(a.stats) || threadIdx.x >= kLogitsTiles.keys || key >= a.k.tokens)
      return;
    float sum = columns[0][threadIdx.x];
    for (int warp = 1; warp < kTileWarps; ++warp) sum += columns[warp][threadIdx.x];
    a.column_sums[(item.row * divide_up(a.q.tokens, kLogitsTiles.queries) + item.chunk) *
                      a.k.tokens +
                  key] = sum;
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Moments row = rows[i];
      // The four lanes of a row.
      for (int bits = 1; bits < 4; bits *= 2) {
        Moments other = from_lane(row, bits);
        const float max = larger(row.max, other.max);
        raise_max(row, max);
        raise_max(other, max);
        row.exp_sum += other.exp_sum;
        row.exp_dot += other.exp_dot;
        row.min = smaller(row.min, other.min);
        if (other.count > 0.0f) merge(row, other.count, other.mean, other.squares);
      }
      const int64_t query = item.first_query + query_of(i);
      if (threadIdx.x % 4 == 0 && query < a.q.tokens) store(row, item.row * a.q.tokens + query);
    }
  }

  __device__ void store(const Moments& row, int64_t at) {
    // With an infinite logit the differences from means are not numbers; the mean is that infinity,
    // or NaN where there are both.
    const bool finite = isfinite(row.max) && isfinite(row.min);
    const float mean = finite ? row.mean : row.max + row.min;
    *reinterpret_cast<float4*>(a.row_moments + 4 * at) = {mean, row.squares, row.max, row.min};
    if (!logits::asks_softmax(a.stats)) return;
    const bool below = isfinite(row.max);
    a.out.logsumexp[at] = below ? row.max + logf(row.exp_sum) : row.max;
    a.out.entropy[at] = below ? logf(row.exp_sum) - row.exp_dot / row.exp_sum : NAN;
  }
};

template <class T, bool kVector>
__global__ void __launch_bounds__(kTileThreads, kLogitsTiles.blocks)
    moments(AttentionLogitsStatsArgs a) {
  __shared__ SlabPairs slabs;
  __shared__ WarpColumns columns;
  for (int64_t i = blockIdx.x; i < Item::count(a); i += gridDim.x) {
    const Item item(a, i);
    MomentsVisitor visitor = {a, item, columns, {}};
    visit_tiles<T, kVector>(a, item.image, item.matrix, item.first_query, slabs, visitor);
    visitor.finish();
  }
}

__global__ void __launch_bounds__(kTiles.threads) maps(AttentionLogitsStatsArgs a) {
  const int64_t chunks = divide_up(a.q.tokens, kLogitsTiles.queries);
  const int64_t per_image = a.k.tokens + a.q.tokens;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTiles.threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kTiles.threads + threadIdx.x;
       i < a.images * per_image; i += step) {
    const int64_t image = i / per_image, token = i % per_image;
    const bool is_key = token < a.k.tokens;
    float total = 0.0f;
    for (int64_t m = 0; m < a.matrices; ++m) {
      const int64_t row = image * a.matrices + m;
      if (is_key) {
        const float* sums = a.column_sums + row * chunks * a.k.tokens + token;
        float sum = 0.0f;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * a.k.tokens];
        const float mean = sum / static_cast<float>(a.q.tokens);
        if (logits::asks_centered_variance(a.stats))
          a.column_means[row * a.k.tokens + token] = mean;
        total += mean;
      } else {
        total += a.row_moments[4 * (row * a.q.tokens + token - a.k.tokens)];
      }
    }
    const float mean = total / static_cast<float>(a.matrices);
    if (is_key)
      a.out.key_map[image * a.k.tokens + token] = mean;
    else
      a.out.query_map[image * a.q.tokens + token - a.k.tokens] = mean;
  }
}

struct Add {
  __device__ static float join(float a, float b) { return a + b; }
};
struct Larger {
  __device__ static float join(float a, float b) { return larger(a, b); }
};
struct Smaller {
  __device__ static float join(float a, float b) { return smaller(a, b); }
};

// The same for all threads, in a fixed order.
template <class Operation>
__device__ float over_block(float value, float (&warps)[kTiles.threads / kWarp]) {
  for (int bits = kWarp / 2; bits > 0; bits /= 2)
    value = Operation::join(value, __shfl_xor_sync(0xffffffffu, value, bits));
  __syncthreads();  // the results of the call before have been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  float all = warps[0];
  for (int warp = 1; warp < kTiles.threads / kWarp; ++warp) all = Operation::join(all, warps[warp]);
  return all;
}

// A mean and what it lacks, of which there is none beside an infinity.
__device__ float corrected(float mean, float rest) { return isfinite(rest) ? mean + rest : mean; }

// The values of each head from those of its rows; a block per head.
__global__ void __launch_bounds__(kTiles.threads) heads(AttentionLogitsStatsArgs a) {
  __shared__ float warps[kTiles.threads / kWarp];
  const float queries = static_cast<float>(a.q.tokens), keys = static_cast<float>(a.k.tokens);
  const int64_t logits = a.q.tokens * a.k.tokens;
  for (int64_t row = blockIdx.x; row < a.images * a.matrices; row += gridDim.x) {
    const float4* rows = reinterpret_cast<const float4*>(a.row_moments) + row * a.q.tokens;
    float sum = 0.0f, within = 0.0f, max = -INFINITY, min = INFINITY;
    for (int64_t i = threadIdx.x; i < a.q.tokens; i += kTiles.threads) {
      sum += rows[i].x;
      within += rows[i].y;
      max = larger(rows[i].z, max);
      min = smaller(rows[i].w, min);
    }
    const float rounded = over_block<Add>(sum, warps) / queries;
    within = over_block<Add>(within, warps);
    max = over_block<Larger>(max, warps);
    min = over_block<Smaller>(min, warps);
    float between = 0.0f, rest = 0.0f;
    for (int64_t i = threadIdx.x; i < a.q.tokens; i += kTiles.threads) {
      rest += rows[i].x - rounded;
      between = fmaf(rows[i].x - rounded, rows[i].x - rounded, between);
    }
    rest = over_block<Add>(rest, warps) / queries;
    between = not_negative(fmaf(-queries * rest, rest, over_block<Add>(between, warps)));
    const float mean = corrected(rounded, rest);
    if (threadIdx.x == 0) {
      const float squares = fmaf(keys, between, within);
      float* values = a.out.head_values + row * logits::kValues;
      values[logits::kMean] = mean;
      values[logits::kMax] = max;
      values[logits::kMin] = min;
      values[logits::kVariance] = squares / static_cast<float>(logits);
      values[logits::kUnbiasedVariance] = squares / static_cast<float>(logits - 1);
      values[logits::kRowVariance] = within / static_cast<float>(logits);
      values[logits::kCenteredVariance] = NAN;  // unless it is asked for
    }
  }
}

// The squares of x - row mean - (column mean - mean).
struct DeviationsVisitor {
  const AttentionLogitsStatsArgs& a;
  const Item& item;
  float row_means[2];
  float mean;
  float squares[2] = {0.0f, 0.0f};

  __device__ DeviationsVisitor(const AttentionLogitsStatsArgs& args, const Item& where)
      : a(args),
        item(where),
        mean(args.out.head_values[where.row * logits::kValues + logits::kMean]) {
    for (int i = 0; i < 2; ++i) {
      const int64_t query = item.first_query + query_of(i);
      row_means[i] = query < a.q.tokens ? a.row_moments[4 * (item.row * a.q.tokens + query)] : 0.0f;
    }
  }

  __device__ void tile(const Logits& logits, int64_t first_key) {
    const Valid valid(a.q.tokens - item.first_query, a.k.tokens - first_key);
    const float* column_means = a.column_means + item.row * a.k.tokens + first_key;
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < kKeyGroups; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (!valid.key(n, j)) continue;
        const float column = column_means[key_of(n, j)] - mean;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float rest = logits[n][2 * i + j] - row_means[i] - column;
          sums[i] = fmaf(rest, rest, sums[i]);
        }
      }
    }
    for (int i = 0; i < 2; ++i) squares[i] += sums[i];
  }

  __device__ void after(int64_t) {}

  __device__ void finish() {
    for (int i = 0; i < 2; ++i) {
      float sum = squares[i];
      for (int bits = 1; bits < 4; bits *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
      const int64_t query = item.first_query + query_of(i);
      if (threadIdx.x % 4 == 0 && query < a.q.tokens)
        a.centred_squares[item.row * a.q.tokens + query] = sum;
    }
  }
};

template <class T, bool kVector>
__global__ void __launch_bounds__(kTileThreads, kLogitsTiles.blocks)
    deviations(AttentionLogitsStatsArgs a) {
  __shared__ SlabPairs slabs;
  for (int64_t i = blockIdx.x; i < Item::count(a); i += gridDim.x) {
    const Item item(a, i);
    DeviationsVisitor visitor(a, item);
    visit_tiles<T, kVector>(a, item.image, item.matrix, item.first_query, slabs, visitor);
    visitor.finish();
  }
}

__global__ void __launch_bounds__(kTiles.threads) centred(AttentionLogitsStatsArgs a) {
  __shared__ float warps[kTiles.threads / kWarp];
  for (int64_t row = blockIdx.x; row < a.images * a.matrices; row += gridDim.x) {
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < a.q.tokens; i += kTiles.threads)
      sum += a.centred_squares[row * a.q.tokens + i];
    sum = over_block<Add>(sum, warps);
    if (threadIdx.x == 0)
      a.out.head_values[row * logits::kValues + logits::kCenteredVariance] =
          sum / static_cast<float>(a.q.tokens * a.k.tokens);
  }
}

// An image's values from those of its heads; a thread per image.
__global__ void __launch_bounds__(kTiles.threads) images(AttentionLogitsStatsArgs a) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTiles.threads;
  const float count = static_cast<float>(a.matrices);
  const int64_t logits = a.q.tokens * a.k.tokens;
  for (int64_t image = static_cast<int64_t>(blockIdx.x) * kTiles.threads + threadIdx.x;
       image < a.images; image += step) {
    const float* head = a.out.head_values + image * a.matrices * logits::kValues;
    float mean = 0.0f, max = -INFINITY, min = INFINITY, row = 0.0f, centred_variance = 0.0f;
    for (int64_t m = 0; m < a.matrices; ++m, head += logits::kValues) {
      mean += head[logits::kMean];
      max = larger(head[logits::kMax], max);
      min = smaller(head[logits::kMin], min);
      row += head[logits::kRowVariance];
      centred_variance += head[logits::kCenteredVariance];
    }
    mean /= count;
    head = a.out.head_values + image * a.matrices * logits::kValues;
    float variance = 0.0f, rest = 0.0f;
    for (int64_t m = 0; m < a.matrices; ++m, head += logits::kValues) {
      const float deviation = head[logits::kMean] - mean;
      rest += deviation;
      variance += fmaf(deviation, deviation, head[logits::kVariance]);
    }
    rest /= count;
    variance = not_negative(fmaf(-rest, rest, variance / count));
    mean = corrected(mean, rest);
    float* values = a.out.image_values + image * logits::kValues;
    values[logits::kMean] = mean;
    values[logits::kMax] = max;
    values[logits::kMin] = min;
    values[logits::kVariance] = variance;
    const float n = static_cast<float>(a.matrices * logits);
    values[logits::kUnbiasedVariance] =
        variance * (n / static_cast<float>(a.matrices * logits - 1));
    values[logits::kRowVariance] = row / count;
    values[logits::kCenteredVariance] = centred_variance / count;
  }
}

template <class T, bool kVector>
cudaError_t launch_values(const AttentionLogitsStatsArgs& a, cudaStream_t stream) {
  const int tiles = blocks_for(Item::count(a)), heads_blocks = blocks_for(a.images * a.matrices);
  const auto in_threads = [](int64_t items) {
    return blocks_for(divide_up(items, kTiles.threads));
  };
  cudaError_t error = launch(moments<T, kVector>, tiles, kTileThreads, 0, stream, a);
  if (error != cudaSuccess || !logits::asks_moments(a.stats)) return error;
  error =
      launch(maps, in_threads(a.images * (a.q.tokens + a.k.tokens)), kTiles.threads, 0, stream, a);
  if (error == cudaSuccess) error = launch(heads, heads_blocks, kTiles.threads, 0, stream, a);
  if (logits::asks_centered_variance(a.stats) && error == cudaSuccess)
    error = launch(deviations<T, kVector>, tiles, kTileThreads, 0, stream, a);
  if (logits::asks_centered_variance(a.stats) && error == cudaSuccess)
    error = launch(centred, heads_blocks, kTiles.threads, 0, stream, a);
  if (error == cudaSuccess)
    error = launch(images, in_threads(a.images), kTiles.threads, 0, stream, a);
  return error;
}

template <class T, bool kVector>
cudaError_t launch_as(const AttentionLogitsStatsArgs& a, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (logits::asks_moments(a.stats) || logits::asks_softmax(a.stats))
    error = launch_values<T, kVector>(a, stream);
  if (logits::asks_median(a.stats) && error == cudaSuccess)
    error = launch_median<T, kVector>(a, stream);
  return error;
}

template <class T>
cudaError_t launch_typed(const AttentionLogitsStatsArgs& a, cudaStream_t stream) {
  const bool aligned = allows_vectors<T>(a.q, a.head_dim) && allows_vectors<T>(a.k, a.head_dim);
  return aligned ? launch_as<T, true>(a, stream) : launch_as<T, false>(a, stream);
}

}  // namespace

AttentionLogitsStatsScratch attention_logits_stats_scratch(const AttentionLogitsStatsArgs& a) {
  const bool moments = logits::asks_moments(a.stats), softmax = logits::asks_softmax(a.stats);
  const bool centred = logits::asks_centered_variance(a.stats);
  const bool median = logits::asks_median(a.stats);
  const int64_t rows = a.images * a.matrices * a.q.tokens;
  const int64_t columns = a.images * a.matrices * a.k.tokens;
  const int64_t chunks = divide_up(a.q.tokens, kLogitsTiles.queries);
  return {moments || softmax ? 4 * rows : 0,
          moments ? columns * chunks : 0,
          centred ? columns : 0,
          centred ? rows : 0,
          median ? Item::count(a) * kWarpsPerChunk * kCountsSize : 0,
          median ? kDigits * a.images : 0};
}

cudaError_t launch_attention_logits_stats(const AttentionLogitsStatsArgs& a, cudaStream_t stream) {
  return for_dtype(a.dtype,
                   [&](auto element) { return launch_typed<decltype(element)>(a, stream); });
}

}  // namespace fiqa_fast::cuda
