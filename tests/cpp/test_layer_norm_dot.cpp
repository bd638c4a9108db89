// SPDX-License-Identifier: Apache-2.0
// layer_norm_dot's CPU kernels against float64, for odd shapes and layouts.
#include "kernels/cpu/layer_norm_dot.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Layout {
  int64_t image, token, channel;
};

struct Parameters {
  Elements weight, bias;  // [D]
};

std::vector<float> run(const Elements& x, const int64_t (&shape)[3], const Layout& layout,
                       const Parameters& parameters, const std::vector<float>& w,
                       const Layout& w_layout, bool item_by_item) {
  const auto [images, tokens, channels] = shape;
  LayerNormDotArgs a = {};
  a.x = x.data();
  a.dtype = x.dtype;
  a.images = images;
  a.tokens = tokens;
  a.channels = channels;
  a.image_stride = layout.image;
  a.token_stride = layout.token;
  a.channel_stride = layout.channel;
  a.weight = {parameters.weight.data(), parameters.weight.dtype, 1};
  a.bias = {parameters.bias.data(), parameters.bias.dtype, 1};
  a.eps = 1e-5f;
  a.w = w.data();
  a.w_token_stride = w_layout.token;
  a.w_channel_stride = w_layout.channel;
  // NaN wherever a kernel forgets to write.
  std::vector<float> folded(tokens * LayerNormDotArgs::padded(channels), NAN);
  std::vector<float> constant(tokens, NAN);
  std::vector<float> partial(images * a.chunks(), NAN), out(images, NAN);
  a.folded = folded.data();
  a.constant = constant.data();
  a.partial = partial.data();
  a.out = out.data();
  const LayerNormDotKernels& kernels = layer_norm_dot_kernels();
  const int64_t items = images * a.chunks();
  if (item_by_item) {
    for (int64_t n = tokens; n-- > 0;) kernels.fold(a, n, n + 1);
    for (int64_t i = items; i-- > 0;) kernels.partial_sums(a, i, i + 1);
  } else {
    kernels.fold(a, 0, tokens);
    kernels.partial_sums(a, 0, items);
  }
  kernels.combine(a, 0, images);
  return out;
}

void test_shape(DType dtype, const int64_t (&shape)[3], float offset, std::mt19937& random) {
  const auto [images, tokens, channels] = shape;
  const Layout contiguous = {tokens * channels, channels, 1};
  const Layout transposed = {tokens * channels, 1, tokens};
  const Elements x = random_elements(dtype, images * tokens * channels, offset, random);
  const std::vector<float> w =
      random_elements(DType::kFloat32, tokens * channels, 0.5f, random).values;
  Elements y = x;
  std::vector<float> v = w;
  for (int64_t n = 0; n < tokens; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      v[n + c * tokens] = w[n * channels + c];
      for (int64_t b = 0; b < images; ++b)
        y.set(b * transposed.image + n + c * tokens, x.values[(b * tokens + n) * channels + c]);
    }
  }
  const Parameters parameters = {random_elements(dtype, channels, 1.0f, random),
                                 random_elements(dtype, channels, 0.0f, random)};

  const std::vector<float> got = run(x, shape, contiguous, parameters, w, contiguous, false);
  for (int64_t b = 0; b < images; ++b) {
    double expected = 0.0, scale = 0.0;
    for (int64_t n = 0; n < tokens; ++n) {
      const float* row = &x.values[(b * tokens + n) * channels];
      double mean = 0.0, variance = 0.0;
      for (int64_t c = 0; c < channels; ++c) mean += row[c];
      mean /= channels;
      for (int64_t c = 0; c < channels; ++c) variance += (row[c] - mean) * (row[c] - mean);
      const double deviation = std::sqrt(variance / channels + static_cast<double>(1e-5f));
      for (int64_t c = 0; c < channels; ++c) {
        const double normed = (row[c] - mean) / deviation * parameters.weight.values[c];
        const double term = parameters.bias.values[c];
        expected += (normed + term) * w[n * channels + c];
        scale += (std::fabs(normed) + std::fabs(term)) * std::fabs(w[n * channels + c]);
      }
    }
    const double error = std::fabs(got[b] - expected), allowed = 1e-6 * (1e-3 + scale);
    expect(error <= allowed, "error against float64", error, allowed);
  }
  const std::vector<float> by_item = run(x, shape, contiguous, parameters, w, contiguous, true);
  const std::vector<float> strided = run(y, shape, transposed, parameters, v, transposed, false);
  for (size_t i = 0; i < got.size(); ++i) {
    expect(got[i] == by_item[i], "work items in another order", got[i], by_item[i]);
    expect(got[i] == strided[i], "another layout", got[i], strided[i]);
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("layer_norm_dot", [&](DType dtype) {
    for (const int64_t tokens : {1, 3, 31, 32, 33, 70})
      for (const int64_t channels : {1, 7, 15, 16, 17, 48, 130})
        for (const float offset : {0.0f, 100.0f})
          test_shape(dtype, {2, tokens, channels}, offset, random);
  });
}
