// SPDX-License-Identifier: Apache-2.0
// batch_invariant_linear's CPU kernels against float64, for odd shapes and layouts.
#include "kernels/cpu/batch_invariant_linear.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Shape {
  int64_t rows, inputs, outputs;
};

struct Layout {
  int64_t row, column;
};

std::vector<float> run(const Shape& shape, const std::vector<float>& x, const Layout& x_layout,
                       const Elements& weight, const Layout& weight_layout, const Elements& bias,
                       bool item_by_item) {
  BatchInvariantLinearArgs a = {};
  a.x = x.data();
  a.x_row_stride = x_layout.row;
  a.x_stride = x_layout.column;
  a.weight = weight.data();
  a.dtype = weight.dtype;
  a.weight_row_stride = weight_layout.row;
  a.weight_stride = weight_layout.column;
  a.bias = {bias.data(), bias.dtype, 1};
  a.rows = shape.rows;
  a.inputs = shape.inputs;
  a.outputs = shape.outputs;
  // NaN wherever a kernel forgets to write.
  std::vector<float> padded(shape.rows * BatchInvariantLinearArgs::padded(shape.inputs), NAN);
  std::vector<float> out(shape.rows * shape.outputs, NAN);
  a.out = out.data();
  const BatchInvariantLinearKernels& kernels = batch_invariant_linear_kernels();
  if (a.needs_padding()) {
    a.padded_x = padded.data();
    kernels.pad(a, 0, shape.rows);
  }
  if (item_by_item) {
    for (int64_t i = a.items(); i-- > 0;) kernels.products(a, i, i + 1);
  } else {
    kernels.products(a, 0, a.items());
  }
  return out;
}

template <class Set>
void transpose(int64_t rows, int64_t columns, const std::vector<float>& values, const Set& set) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) set(c * rows + r, values[r * columns + c]);
}

void test_shape(DType dtype, const Shape& shape, std::mt19937& random) {
  const auto [rows, inputs, outputs] = shape;
  const std::vector<float> x = random_elements(DType::kFloat32, rows * inputs, 0.0f, random).values;
  const Elements weight = random_elements(dtype, outputs * inputs, 0.5f, random);
  const Elements bias = random_elements(dtype, outputs, 0.0f, random);
  std::vector<float> y = x;
  Elements turned = weight;
  transpose(rows, inputs, x, [&](int64_t i, float value) { y[i] = value; });
  transpose(outputs, inputs, weight.values, [&](int64_t i, float value) { turned.set(i, value); });

  const Layout plain = {inputs, 1};
  const std::vector<float> got = run(shape, x, plain, weight, plain, bias, false);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < outputs; ++o) {
      double expected = bias.values[o], scale = std::fabs(expected);
      for (int64_t k = 0; k < inputs; ++k) {
        const double term = static_cast<double>(x[r * inputs + k]) * weight.values[o * inputs + k];
        expected += term;
        scale += std::fabs(term);
      }
      const double error = std::fabs(got[r * outputs + o] - expected), allowed = 1e-6 * scale;
      expect(error <= allowed, "error against float64", error, allowed);
    }
  }
  const std::vector<float> by_item = run(shape, x, plain, weight, plain, bias, true);
  const std::vector<float> strided = run(shape, y, {1, rows}, turned, {1, outputs}, bias, false);
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float> row(x.begin() + r * inputs, x.begin() + (r + 1) * inputs);
    const std::vector<float> alone =
        run({1, inputs, outputs}, row, plain, weight, plain, bias, false);
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t i = r * outputs + o;
      expect(got[i] == by_item[i], "work items in another order", got[i], by_item[i]);
      expect(got[i] == strided[i], "another layout", got[i], strided[i]);
      expect(got[i] == alone[o], "a row by itself", got[i], alone[o]);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("batch_invariant_linear", [&](DType dtype) {
    for (const int64_t rows : {1, 2, 4, 7})
      for (const int64_t inputs : {1, 15, 16, 17, 100, 2047, 2048, 2050})
        for (const int64_t outputs : {1, 4, 15, 16, 19})
          test_shape(dtype, {rows, inputs, outputs}, random);
  });
}
