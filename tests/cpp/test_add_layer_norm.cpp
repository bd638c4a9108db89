// SPDX-License-Identifier: Apache-2.0
// add_layer_norm's CPU kernel against float64, for odd shapes and layouts.
#include "kernels/cpu/add_layer_norm.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Shape {
  int64_t images, tokens, channels;
  int64_t size() const { return images * tokens * channels; }
};

struct Outputs {
  std::vector<float> sum, normed, partial;
};

// Reads x and the residual as [B, N, D] or, if turned, as a view of [B, D, N].
Outputs run(const Shape& shape, const std::vector<float>& x, const Elements& residual, bool turned,
            const std::vector<float>& weight, const std::vector<float>& bias,
            const std::vector<float>& w, bool item_by_item) {
  const auto [images, tokens, channels] = shape;
  AddLayerNormCpuArgs a = {};
  a.x = x.data();
  a.residual = residual.data();
  a.residual_dtype = residual.dtype;
  a.x_image_stride = a.residual_image_stride = tokens * channels;
  a.x_token_stride = a.residual_token_stride = turned ? 1 : channels;
  a.x_channel_stride = a.residual_channel_stride = turned ? tokens : 1;
  a.weight = {weight.data(), DType::kFloat32, 1};
  a.bias = {bias.data(), DType::kFloat32, 1};
  a.images = images;
  a.tokens = tokens;
  a.channels = channels;
  a.eps = 1e-5f;
  a.normed_dtype = DType::kFloat32;
  // NaN wherever a kernel forgets to write.
  Outputs out = {std::vector<float>(shape.size(), NAN), std::vector<float>(shape.size(), NAN),
                 std::vector<float>(images * a.chunks(), NAN)};
  a.sum = out.sum.data();
  a.normed = out.normed.data();
  a.partial = out.partial.data();
  if (channels == LayerNormDotArgs::padded(channels)) {
    a.w = w.data();
    a.w_token_stride = channels;
  }
  const AddLayerNormKernels& kernels = add_layer_norm_kernels();
  const int64_t items = images * a.chunks();
  if (item_by_item) {
    for (int64_t i = items; i-- > 0;) kernels.add_and_norm(a, i, i + 1);
  } else {
    kernels.add_and_norm(a, 0, items);
  }
  return out;
}

void test_shape(DType dtype, const Shape& shape, float offset, std::mt19937& random) {
  const auto [images, tokens, channels] = shape;
  const auto floats = [&](int64_t count, float middle) {
    return random_elements(DType::kFloat32, count, middle, random).values;
  };
  const std::vector<float> x = floats(shape.size(), offset);
  const Elements residual = random_elements(dtype, shape.size(), 0.0f, random);
  const std::vector<float> weight = floats(channels, 1.0f), bias = floats(channels, 0.0f);
  const std::vector<float> w = floats(tokens * channels, 0.0f);
  std::vector<float> y = x;
  Elements turned = residual;
  for (int64_t b = 0; b < images; ++b) {
    for (int64_t n = 0; n < tokens; ++n) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t from = (b * tokens + n) * channels + c;
        const int64_t to = (b * channels + c) * tokens + n;
        y[to] = x[from];
        turned.set(to, residual.values[from]);
      }
    }
  }
  const Outputs got = run(shape, x, residual, false, weight, bias, w, false);
  for (int64_t row = 0; row < images * tokens; ++row) {
    double mean = 0.0, variance = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = row * channels + c;
      const float sum = x[i] + residual.values[i];
      expect(got.sum[i] == sum, "sum", got.sum[i], sum);
      mean += sum;
    }
    mean /= channels;
    for (int64_t c = 0; c < channels; ++c)
      variance += std::pow(got.sum[row * channels + c] - mean, 2);
    const double deviation = std::sqrt(variance / channels + static_cast<double>(1e-5f));
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = row * channels + c;
      const double normed = (got.sum[i] - mean) / deviation * weight[c];
      const double error = std::fabs(got.normed[i] - (normed + bias[c]));
      const double allowed = 1e-6 * (1.0 + std::fabs(normed) + std::fabs(bias[c]));
      expect(error <= allowed, "error against float64", error, allowed);
    }
  }
  const Outputs by_item = run(shape, x, residual, false, weight, bias, w, true);
  const Outputs strided = run(shape, y, turned, true, weight, bias, w, false);
  for (int64_t i = 0; i < shape.size(); ++i) {
    expect(got.normed[i] == by_item.normed[i], "work items in another order", got.normed[i],
           by_item.normed[i]);
    expect(got.normed[i] == strided.normed[i], "another layout", got.normed[i], strided.normed[i]);
  }
  if (channels != LayerNormDotArgs::padded(channels)) return;
  // The partial dot products are layer_norm_dot's, bit for bit.
  LayerNormDotArgs d = {};
  d.x = got.sum.data();
  d.images = images;
  d.tokens = tokens;
  d.channels = channels;
  d.image_stride = tokens * channels;
  d.token_stride = channels;
  d.channel_stride = 1;
  d.eps = 1e-5f;
  d.w = w.data();
  d.w_token_stride = channels;
  d.w_channel_stride = 1;
  std::vector<float> partial(got.partial.size(), NAN);
  d.partial = partial.data();
  layer_norm_dot_kernels().partial_sums(d, 0, static_cast<int64_t>(partial.size()));
  for (size_t i = 0; i < partial.size(); ++i)
    expect(got.partial[i] == partial[i], "dot product on the way", got.partial[i], partial[i]);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("add_layer_norm", [&](DType dtype) {
    for (const int64_t tokens : {1, 3, 31, 32, 33, 70})
      for (const int64_t channels : {1, 7, 15, 16, 17, 48, 130})
        for (const float offset : {0.0f, 100.0f})
          test_shape(dtype, {2, tokens, channels}, offset, random);
  });
}
