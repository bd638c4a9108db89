// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/attention_logits.h"

namespace fiqa_fast {

inline AttentionLogitsInputs check_attention_logits_mean(const Tensor& q,    // [B, H, Nq, d]
                                                         const Tensor& k) {  // [B, H, Nk, d]
  return check_attention_logits("attention_logits_mean", q, k);
}

}  // namespace fiqa_fast
