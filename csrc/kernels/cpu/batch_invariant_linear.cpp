// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/batch_invariant_linear.h"

#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

// Rows of x and of weights that are multiplied with one another at a time: as many sums as there
// are registers for, beside the weights.
constexpr int kRows = kParts == 1 ? 4 : kParts == 2 ? 2 : 1;
constexpr int kOutputs = kParts == 1 ? 4 : 2;

void pad(const BatchInvariantLinearArgs& a, int64_t begin, int64_t end) {
  const int64_t padded = BatchInvariantLinearArgs::padded(a.inputs);
  for (int64_t row = begin; row < end; ++row) {
    const float* from = a.x + row * a.x_row_stride;
    for (int64_t k = 0; k < padded; k += kLanes)
      store(a.padded_x + row * padded + k,
            load_up_to(from + k * a.x_stride, a.x_stride, a.inputs - k));
  }
}

// By value: stores to results cannot change a copy.
template <bool kUnitStride, class T>
struct Chunk {
  const float* x;   // of the first row, and of the first input of the chunk
  const T* weight;  // likewise
  int64_t x_row_stride, weight_row_stride, weight_stride;
  int64_t inputs;
};

// Adds the chunk's part of kRowCount rows' products with kOutputCount rows of weights to out.
template <int kRowCount, int kOutputCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void multiply(Chunk<kUnitStride, T> c, bool first, float* out,
                               int64_t out_row_stride) {
  Vec sums[kRowCount][kOutputCount] = {};
  const int64_t whole = c.inputs / kLanes * kLanes;
  const auto add = [&](int64_t k, const Vec(&weights)[kOutputCount]) {
    for (int r = 0; r < kRowCount; ++r) {
      const Vec x = load(c.x + r * c.x_row_stride + k);
      for (int o = 0; o < kOutputCount; ++o) sums[r][o] = fma(x, weights[o], sums[r][o]);
    }
  };
  Vec weights[kOutputCount];
  for (int64_t k = 0; k < whole; k += kLanes) {
    for (int o = 0; o < kOutputCount; ++o)
      weights[o] = load_strided<kUnitStride>(
          c.weight + o * c.weight_row_stride + k * c.weight_stride, c.weight_stride);
    add(k, weights);
  }
  if (whole < c.inputs) {
    for (int o = 0; o < kOutputCount; ++o)
      weights[o] = load_some(c.weight + o * c.weight_row_stride + whole * c.weight_stride,
                             c.weight_stride, c.inputs - whole);
    add(whole, weights);
  }
  for (int r = 0; r < kRowCount; ++r) {
    for (int o = 0; o < kOutputCount; ++o) {
      float& total = out[r * out_row_stride + o];
      const float part = sum(sums[r][o]);
      total = first ? part : total + part;
    }
  }
}

template <int kOutputCount, bool kUnitStride, class T>
FIQA_FAST_INLINE void multiply_rows(Chunk<kUnitStride, T> c, int64_t rows, bool first, float* out,
                                    int64_t out_row_stride) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    multiply<kRows, kOutputCount>(c, first, out, out_row_stride);
    c.x += kRows * c.x_row_stride;
    out += kRows * out_row_stride;
  }
  for (; r < rows; ++r) {
    multiply<1, kOutputCount>(c, first, out, out_row_stride);
    c.x += c.x_row_stride;
    out += out_row_stride;
  }
}

template <bool kUnitStride, class T>
FIQA_FAST_INLINE void products_of(const BatchInvariantLinearArgs& a, int64_t begin, int64_t end) {
  const float* x = a.padded_x ? a.padded_x : a.x;
  const int64_t x_row_stride =
      a.padded_x ? BatchInvariantLinearArgs::padded(a.inputs) : a.x_row_stride;
  const int64_t last =
      end * kLinearOutputsPerItem < a.outputs ? end * kLinearOutputsPerItem : a.outputs;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t from = item * kLinearOutputsPerItem;
    const int64_t to = from + kLinearOutputsPerItem < last ? from + kLinearOutputsPerItem : last;
    for (int64_t k = 0; k < a.inputs; k += kLinearInputsPerChunk) {
      const int64_t left = a.inputs - k;
      Chunk<kUnitStride, T> chunk = {
          x + k,
          static_cast<const T*>(a.weight) + from * a.weight_row_stride + k * a.weight_stride,
          x_row_stride,
          a.weight_row_stride,
          a.weight_stride,
          left < kLinearInputsPerChunk ? left : kLinearInputsPerChunk};
      int64_t o = from;
      for (; o + kOutputs <= to; o += kOutputs) {
        multiply_rows<kOutputs>(chunk, a.rows, k == 0, a.out + o, a.outputs);
        chunk.weight += kOutputs * a.weight_row_stride;
      }
      for (; o < to; ++o) {
        multiply_rows<1>(chunk, a.rows, k == 0, a.out + o, a.outputs);
        chunk.weight += a.weight_row_stride;
      }
    }
    if (!a.bias.data) continue;
    for (int64_t o = from; o < to; ++o) {
      const float bias = element(a.bias, o);
      for (int64_t r = 0; r < a.rows; ++r) a.out[r * a.outputs + o] += bias;
    }
  }
}

template <class T>
FIQA_FAST_INLINE void products_as(const BatchInvariantLinearArgs& a, int64_t begin, int64_t end) {
  if (a.weight_stride == 1)
    products_of<true, T>(a, begin, end);
  else
    products_of<false, T>(a, begin, end);
}

void products(const BatchInvariantLinearArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::kFloat32:
      return products_as<float>(a, begin, end);
    case DType::kBFloat16:
      return products_as<BFloat16>(a, begin, end);
    case DType::kFloat16:
      return products_as<Float16>(a, begin, end);
  }
}

}  // namespace

const BatchInvariantLinearKernels batch_invariant_linear_kernels_table = {pad, products};

}  // namespace fiqa_fast::FIQA_FAST_ISA
