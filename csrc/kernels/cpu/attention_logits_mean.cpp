// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attention_logits_mean.h"

#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

constexpr int64_t kTokens = kAttentionLogitsMeanTokensPerChunk;
// Tokens taken together: more loads in flight, and one load and store of the running sums for all.
constexpr int kRows = 4;

// A chunk of tokens of one image, of q or of k.
struct Chunk {
  const AttentionSide& side;
  const AttentionSide& other;
  int64_t image, index, first, count;
};

Chunk find_chunk(const AttentionLogitsMeanArgs& a, int64_t item) {
  const int64_t image = item / a.chunks();
  int64_t index = item % a.chunks();
  const bool is_q = index < a.q.chunks();
  if (!is_q) index -= a.q.chunks();
  const AttentionSide& side = is_q ? a.q : a.k;
  const int64_t first = index * kTokens;
  const int64_t remaining = side.tokens - first;
  return {side, is_q ? a.k : a.q, image, index, first, remaining < kTokens ? remaining : kTokens};
}

// Calls visit(h, t, rows) for every head h and group of tokens from t on; rows is 1 or kRows, as an
// integral constant. Heads outside or inside, whichever reads memory in its order: [B, H, N, d] or
// [B, N, H, d]. Every sum below runs over the tokens of one head, or over the heads of one token,
// in order either way, so the result is the same.
template <int kCount>
struct Rows {};

template <class Visit>
FIQA_FAST_INLINE void visit_heads_and_tokens(const AttentionSide& side, int64_t heads,
                                             int64_t count, const Visit& visit) {
  const int64_t grouped = count / kRows * kRows;
  if (side.head_stride > side.token_stride) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < grouped; t += kRows) visit(h, t, Rows<kRows>{});
      for (int64_t t = grouped; t < count; ++t) visit(h, t, Rows<1>{});
    }
  } else {
    for (int64_t t = 0; t < grouped; t += kRows)
      for (int64_t h = 0; h < heads; ++h) visit(h, t, Rows<kRows>{});
    for (int64_t t = grouped; t < count; ++t)
      for (int64_t h = 0; h < heads; ++h) visit(h, t, Rows<1>{});
  }
}

// sums [padded d] += kCount rows.
template <int kCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void add_rows(const T* rows, const AttentionSide& side, int64_t head_dim,
                               float* sums) {
  const int64_t stride = side.channel_stride;
  int64_t c = 0;
  for (; c + kLanes <= head_dim; c += kLanes) {
    Vec running = load(sums + c);
    for (int r = 0; r < kCount; ++r)
      running =
          running + load_strided<kUnitStride>(rows + r * side.token_stride + c * stride, stride);
    store(sums + c, running);
  }
  if (c < head_dim) {
    Vec running = load(sums + c);
    for (int r = 0; r < kCount; ++r)
      running =
          running + load_some(rows + r * side.token_stride + c * stride, stride, head_dim - c);
    store(sums + c, running);
  }
}

// dots [kCount][kLanes] += the lane-wise products of kCount rows with mean [padded d].
template <int kCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void dot_rows(const T* rows, const AttentionSide& side, int64_t head_dim,
                               const float* mean, float* dots) {
  const int64_t stride = side.channel_stride;
  Vec running[kCount];
  for (int r = 0; r < kCount; ++r) running[r] = load(dots + r * kLanes);
  int64_t c = 0;
  for (; c + kLanes <= head_dim; c += kLanes) {
    const Vec factor = load(mean + c);
    for (int r = 0; r < kCount; ++r)
      running[r] = fma(load_strided<kUnitStride>(rows + r * side.token_stride + c * stride, stride),
                       factor, running[r]);
  }
  if (c < head_dim) {
    const Vec factor = load(mean + c);
    for (int r = 0; r < kCount; ++r)
      running[r] = fma(load_some(rows + r * side.token_stride + c * stride, stride, head_dim - c),
                       factor, running[r]);
  }
  for (int r = 0; r < kCount; ++r) store(dots + r * kLanes, running[r]);
}

template <bool kUnitStride, class T>
void partial_sums_of(const AttentionLogitsMeanArgs& a, int64_t item) {
  const Chunk chunk = find_chunk(a, item);
  const AttentionSide& side = chunk.side;
  const int64_t padded = AttentionLogitsMeanArgs::padded(a.head_dim);
  const T* tokens = static_cast<const T*>(side.data) + chunk.image * side.image_stride +
                    chunk.first * side.token_stride;
  float* sums = side.partial + (chunk.image * side.chunks() + chunk.index) * a.heads * padded;
  for (int64_t c = 0; c < a.heads * padded; c += kLanes) store(sums + c, Vec{});
  visit_heads_and_tokens(
      side, a.heads, chunk.count, [&]<int kCount>(int64_t h, int64_t t, Rows<kCount>) {
        add_rows<kCount, kUnitStride>(tokens + h * side.head_stride + t * side.token_stride, side,
                                      a.head_dim, sums + h * padded);
      });
}

template <bool kUnitStride, class T>
void maps_of(const AttentionLogitsMeanArgs& a, int64_t item) {
  const Chunk chunk = find_chunk(a, item);
  const AttentionSide& side = chunk.side;
  const int64_t padded = AttentionLogitsMeanArgs::padded(a.head_dim);
  const T* tokens = static_cast<const T*>(side.data) + chunk.image * side.image_stride +
                    chunk.first * side.token_stride;
  const float* mean = chunk.other.mean + chunk.image * a.heads * padded;
  float dots[kTokens * kLanes] = {};
  visit_heads_and_tokens(
      side, a.heads, chunk.count, [&]<int kCount>(int64_t h, int64_t t, Rows<kCount>) {
        dot_rows<kCount, kUnitStride>(tokens + h * side.head_stride + t * side.token_stride, side,
                                      a.head_dim, mean + h * padded, dots + t * kLanes);
      });
  float* map = side.map + chunk.image * side.tokens + chunk.first;
  const float factor = a.scale / static_cast<float>(a.heads);
  for (int64_t t = 0; t < chunk.count; ++t) map[t] = factor * sum(load(dots + t * kLanes));
}

template <class T>
void partial_sums_as(const AttentionLogitsMeanArgs& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    if (find_chunk(a, item).side.channel_stride == 1)
      partial_sums_of<true, T>(a, item);
    else
      partial_sums_of<false, T>(a, item);
  }
}

template <class T>
void maps_as(const AttentionLogitsMeanArgs& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    if (find_chunk(a, item).side.channel_stride == 1)
      maps_of<true, T>(a, item);
    else
      maps_of<false, T>(a, item);
  }
}

void partial_sums(const AttentionLogitsMeanArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return partial_sums_as<float>(a, begin, end);
    case DType::kBFloat16:
      return partial_sums_as<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return partial_sums_as<Float16>(a, begin, end);
  }
}

void maps(const AttentionLogitsMeanArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return maps_as<float>(a, begin, end);
    case DType::kBFloat16:
      return maps_as<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return maps_as<Float16>(a, begin, end);
  }
}

// The mean over tokens, from the sums over chunks, in their order.
void mean_of(const AttentionLogitsMeanArgs& a, const AttentionSide& side, int64_t image) {
  const int64_t padded = AttentionLogitsMeanArgs::padded(a.head_dim);
  const int64_t size = a.heads * padded;
  const float* partial = side.partial + image * side.chunks() * size;
  float* mean = side.mean + image * size;
  const float n = static_cast<float>(side.tokens);
  for (int64_t c = 0; c < size; c += kLanes) {
    Vec total = load(partial + c);
    for (int64_t chunk = 1; chunk < side.chunks(); ++chunk)
      total = total + load(partial + chunk * size + c);
    for (int p = 0; p < kParts; ++p) total.part[p] /= n;
    store(mean + c, total);
  }
}

void combine(const AttentionLogitsMeanArgs& a, int64_t begin, int64_t end) {
  const int64_t padded = AttentionLogitsMeanArgs::padded(a.head_dim);
  for (int64_t image = begin; image < end; ++image) {
    mean_of(a, a.q, image);
    mean_of(a, a.k, image);
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t row = image * a.heads + h;
      const float* q = a.q.mean + row * padded;
      const float* k = a.k.mean + row * padded;
      Vec dot = {};
      for (int64_t c = 0; c < padded; c += kLanes) dot = fma(load(q + c), load(k + c), dot);
      a.head_scores[row] = a.scale * sum(dot);
      for (int64_t c = 0; c < a.head_dim; ++c) a.q_mean[row * a.head_dim + c] = q[c];
    }
  }
}

}  // namespace

const AttentionLogitsMeanKernels attention_logits_mean_kernels_table = {partial_sums, combine,
                                                                        maps};

}  // namespace fiqa_fast::FIQA_FAST_ISA
