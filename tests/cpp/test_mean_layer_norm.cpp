// SPDX-License-Identifier: Apache-2.0
// mean_layer_norm's CPU kernels against float64, for odd shapes and layouts.
#include "kernels/cpu/mean_layer_norm.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Layout {
  int64_t image, token, channel;
};

std::vector<float> run(const Elements& x, const int64_t (&shape)[3], const Layout& layout,
                       const std::vector<float>& weight, bool item_by_item) {
  const auto [images, tokens, channels] = shape;
  MeanLayerNormArgs a = {};
  a.x = x.data();
  a.dtype = x.dtype;
  a.images = images;
  a.tokens = tokens;
  a.channels = channels;
  a.image_stride = layout.image;
  a.token_stride = layout.token;
  a.channel_stride = layout.channel;
  a.weight = {weight.data(), DType::kFloat32, 1};
  a.eps = 1e-5f;
  // NaN wherever a kernel forgets to write.
  std::vector<float> partial(images * a.chunks() * MeanLayerNormArgs::padded(channels), NAN);
  std::vector<float> out(images * channels, NAN);
  a.partial = partial.data();
  a.out = out.data();
  const MeanLayerNormKernels& kernels = mean_layer_norm_kernels();
  const int64_t items = images * a.chunks();
  if (item_by_item)
    for (int64_t i = items; i-- > 0;) kernels.partial_sums(a, i, i + 1);
  else
    kernels.partial_sums(a, 0, items);
  kernels.combine(a, 0, images);
  return out;
}

void test_shape(DType dtype, const int64_t (&shape)[3], float offset, std::mt19937& random) {
  const auto [images, tokens, channels] = shape;
  const Layout contiguous = {tokens * channels, channels, 1};
  const Layout transposed = {tokens * channels, 1, tokens};
  const Elements x = random_elements(dtype, images * tokens * channels, offset, random);
  Elements y = x;
  for (int64_t b = 0; b < images; ++b)
    for (int64_t n = 0; n < tokens; ++n)
      for (int64_t c = 0; c < channels; ++c)
        y.set(b * transposed.image + n + c * tokens, x.values[(b * tokens + n) * channels + c]);
  std::vector<float> weight(channels);
  for (float& w : weight) w = std::uniform_real_distribution<float>(0.5f, 1.5f)(random);

  const std::vector<float> got = run(x, shape, contiguous, weight, false);
  for (int64_t b = 0; b < images; ++b) {
    std::vector<double> expected(channels, 0.0);
    for (int64_t n = 0; n < tokens; ++n) {
      const float* row = &x.values[(b * tokens + n) * channels];
      double mean = 0.0, variance = 0.0;
      for (int64_t c = 0; c < channels; ++c) mean += row[c];
      mean /= channels;
      for (int64_t c = 0; c < channels; ++c) variance += (row[c] - mean) * (row[c] - mean);
      const double deviation = std::sqrt(variance / channels + static_cast<double>(1e-5f));
      for (int64_t c = 0; c < channels; ++c) expected[c] += (row[c] - mean) / deviation / tokens;
    }
    for (int64_t c = 0; c < channels; ++c) {
      // Normalised values are of the order of one and at most sqrt(D).
      const double error = std::fabs(got[b * channels + c] - expected[c] * weight[c]);
      const double allowed = 1e-6 * (1.0 + std::fabs(expected[c]));
      expect(error <= allowed, "error against float64", error, allowed);
    }
  }
  const std::vector<float> by_item = run(x, shape, contiguous, weight, true);
  const std::vector<float> strided = run(y, shape, transposed, weight, false);
  for (size_t i = 0; i < got.size(); ++i) {
    expect(got[i] == by_item[i], "work items in another order", got[i], by_item[i]);
    expect(got[i] == strided[i], "another layout", got[i], strided[i]);
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("mean_layer_norm", [&](DType dtype) {
    for (const int64_t tokens : {1, 3, 31, 32, 33, 70})
      for (const int64_t channels : {1, 7, 15, 16, 17, 48, 130})
        for (const float offset : {0.0f, 100.0f})
          test_shape(dtype, {2, tokens, channels}, offset, random);
  });
}
