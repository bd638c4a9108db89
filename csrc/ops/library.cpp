// SPDX-License-Identifier: Apache-2.0
// The schemas of all operators. Implementations register themselves at the bottom of
// csrc/cpu/<op>.cpp and csrc/cuda/<op>.cpp; fake implementations stand in fiqa_fast/_fake.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fiqa_fast, m) {
  m.def(
      "mean_layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor? residual, "
      "Tensor? u) -> (Tensor mean, Tensor map)");
  m.def("layer_norm_dot(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor w) -> Tensor");
  m.def(
      "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, "
      "ScalarType dtype, int mean_from, Tensor? w) -> "
      "(Tensor sum, Tensor normed, Tensor mean, Tensor dot)");
  m.def("batch_invariant_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "attention_logits_mean(Tensor q, Tensor k, float scale) -> "
      "(Tensor head_scores, Tensor key_map, Tensor query_map, Tensor q_mean)");
  m.def(
      "attention_logits_stats(Tensor q, Tensor k, float scale, int stats, bool average_heads) -> "
      "(Tensor head_values, Tensor image_values, Tensor key_map, Tensor query_map, "
      "Tensor logsumexp, Tensor entropy, Tensor median)");
}
