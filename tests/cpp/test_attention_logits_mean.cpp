// SPDX-License-Identifier: Apache-2.0
// attention_logits_mean's CPU kernels against all logits in float64, for odd shapes and layouts.
#include "kernels/cpu/attention_logits_mean.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Shape {
  int64_t images, heads, q_tokens, k_tokens, head_dim;
};

struct Outputs {
  std::vector<float> head_scores, key_map, query_map, q_mean;
};

// Where element (b, h, n, c) of [B, H, N, d] lies: heads before tokens, tokens before heads, or
// channels outermost but for the image.
enum class Layout { kHeadsFirst, kTokensFirst, kChannelsFirst };

void set_strides(AttentionSide& side, const Shape& s, Layout layout) {
  side.image_stride = s.heads * side.tokens * s.head_dim;
  if (layout == Layout::kHeadsFirst) {
    side.head_stride = side.tokens * s.head_dim;
    side.token_stride = s.head_dim;
    side.channel_stride = 1;
  } else if (layout == Layout::kTokensFirst) {
    side.head_stride = s.head_dim;
    side.token_stride = s.heads * s.head_dim;
    side.channel_stride = 1;
  } else {
    side.head_stride = side.tokens;
    side.token_stride = 1;
    side.channel_stride = s.heads * side.tokens;
  }
}

Elements arrange(const Elements& from, const Shape& s, int64_t tokens, Layout layout) {
  AttentionSide side = {};
  side.tokens = tokens;
  set_strides(side, s, layout);
  Elements to = from;
  size_t i = 0;
  for (int64_t b = 0; b < s.images; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t n = 0; n < tokens; ++n)
        for (int64_t c = 0; c < s.head_dim; ++c)
          to.set(b * side.image_stride + h * side.head_stride + n * side.token_stride +
                     c * side.channel_stride,
                 from.values[i++]);
  return to;
}

Outputs run(const Elements& q, const Elements& k, const Shape& s, Layout layout, float scale) {
  const int64_t padded = AttentionLogitsMeanArgs::padded(s.head_dim);
  AttentionLogitsMeanArgs a = {};
  a.dtype = q.dtype;
  a.images = s.images;
  a.heads = s.heads;
  a.head_dim = s.head_dim;
  a.scale = scale;
  a.q.data = q.data();
  a.q.tokens = s.q_tokens;
  a.k.data = k.data();
  a.k.tokens = s.k_tokens;
  set_strides(a.q, s, layout);
  set_strides(a.k, s, layout);
  // NaN wherever a kernel forgets to write.
  Outputs out = {std::vector<float>(s.images * s.heads, NAN),
                 std::vector<float>(s.images * s.k_tokens, NAN),
                 std::vector<float>(s.images * s.q_tokens, NAN),
                 std::vector<float>(s.images * s.heads * s.head_dim, NAN)};
  std::vector<float> q_partial(s.images * a.q.chunks() * s.heads * padded, NAN);
  std::vector<float> k_partial(s.images * a.k.chunks() * s.heads * padded, NAN);
  std::vector<float> q_mean(s.images * s.heads * padded, NAN), k_mean = q_mean;
  a.q.partial = q_partial.data();
  a.k.partial = k_partial.data();
  a.q.mean = q_mean.data();
  a.k.mean = k_mean.data();
  a.q.map = out.query_map.data();
  a.k.map = out.key_map.data();
  a.head_scores = out.head_scores.data();
  a.q_mean = out.q_mean.data();
  const AttentionLogitsMeanKernels& kernels = attention_logits_mean_kernels();
  kernels.partial_sums(a, 0, s.images * a.chunks());
  kernels.combine(a, 0, s.images);
  kernels.maps(a, 0, s.images * a.chunks());
  return out;
}

Outputs expected_from_logits(const Elements& q, const Elements& k, const Shape& s, double scale) {
  std::vector<double> scores(s.images * s.heads), keys(s.images * s.k_tokens),
      queries(s.images * s.q_tokens), means(s.images * s.heads * s.head_dim);
  const double pairs = static_cast<double>(s.q_tokens) * s.k_tokens;
  for (int64_t b = 0; b < s.images; ++b)
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t row = b * s.heads + h;
      const float* qs = &q.values[row * s.q_tokens * s.head_dim];
      const float* ks = &k.values[row * s.k_tokens * s.head_dim];
      for (int64_t i = 0; i < s.q_tokens; ++i)
        for (int64_t j = 0; j < s.k_tokens; ++j) {
          double logit = 0.0;
          for (int64_t c = 0; c < s.head_dim; ++c)
            logit += static_cast<double>(qs[i * s.head_dim + c]) * ks[j * s.head_dim + c];
          logit *= scale;
          scores[row] += logit / pairs;
          keys[b * s.k_tokens + j] += logit / s.heads / s.q_tokens;
          queries[b * s.q_tokens + i] += logit / s.heads / s.k_tokens;
        }
      for (int64_t i = 0; i < s.q_tokens; ++i)
        for (int64_t c = 0; c < s.head_dim; ++c)
          means[row * s.head_dim + c] += static_cast<double>(qs[i * s.head_dim + c]) / s.q_tokens;
    }
  auto narrow = [](const std::vector<double>& v) { return std::vector<float>(v.begin(), v.end()); };
  return {narrow(scores), narrow(keys), narrow(queries), narrow(means)};
}

void compare(const char* what, const std::vector<float>& got, const std::vector<float>& expected,
             double allowed) {
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
    expect(error <= allowed, what, error, allowed);
  }
}

void test_shape(DType dtype, const Shape& s, std::mt19937& random) {
  const Elements q =
      random_elements(dtype, s.images * s.heads * s.q_tokens * s.head_dim, 0, random);
  const Elements k =
      random_elements(dtype, s.images * s.heads * s.k_tokens * s.head_dim, 0, random);
  const float scale = 0.25f;
  const Outputs got = run(q, k, s, Layout::kHeadsFirst, scale);
  const Outputs expected = expected_from_logits(q, k, s, scale);
  // q and k are of the order of one: so are means, and d products of them are added.
  const double allowed = 1e-6 * (1.0 + std::sqrt(static_cast<double>(s.head_dim)));
  compare("head_scores", got.head_scores, expected.head_scores, allowed);
  compare("key_map", got.key_map, expected.key_map, allowed);
  compare("query_map", got.query_map, expected.query_map, allowed);
  compare("q_mean", got.q_mean, expected.q_mean, allowed);
  for (const Layout layout : {Layout::kTokensFirst, Layout::kChannelsFirst}) {
    const Outputs other =
        run(arrange(q, s, s.q_tokens, layout), arrange(k, s, s.k_tokens, layout), s, layout, scale);
    compare("head_scores, another layout", other.head_scores, got.head_scores, 0.0);
    compare("key_map, another layout", other.key_map, got.key_map, 0.0);
    compare("query_map, another layout", other.query_map, got.query_map, 0.0);
    compare("q_mean, another layout", other.q_mean, got.q_mean, 0.0);
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("attention_logits_mean", [&](DType dtype) {
    for (const int64_t q_tokens : {1, 5, 32, 33})
      for (const int64_t k_tokens : {1, 31, 66})
        for (const int64_t head_dim : {1, 8, 15, 16, 17, 64, 72})
          for (const int64_t heads : {1, 3})
            test_shape(dtype, {2, heads, q_tokens, k_tokens, head_dim}, random);
  });
}
