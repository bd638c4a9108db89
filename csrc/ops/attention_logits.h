// SPDX-License-Identifier: Apache-2.0
// The checks of every operator on the attention logits of q and k.
#pragma once

#include "ops/checks.h"

namespace fiqa_fast {

struct AttentionLogitsInputs {
  DType dtype;
  int64_t images, heads, q_tokens, k_tokens, head_dim;  // B, H, Nq, Nk, d
};

inline AttentionLogitsInputs check_attention_logits(const char* op,
                                                    const Tensor& q,    // [B, H, Nq, d]
                                                    const Tensor& k) {  // [B, H, Nk, d]
  check(q.dim() == 4, op, ": q should be [B, H, Nq, d], got ", shape_text(q));
  check(k.dim() == 4, op, ": k should be [B, H, Nk, d], got ", shape_text(k));
  check(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3), op,
        ": q and k should agree in B, H and d, got ", shape_text(q), " and ", shape_text(k));
  check(q.size(1) > 0 && q.size(2) > 0 && k.size(2) > 0 && q.size(3) > 0, op,
        ": q and k should have H > 0, N > 0 and d > 0, got ", shape_text(q), " and ",
        shape_text(k));
  const DType dtype = check_dtype(op, "q", q);
  check(k.scalar_type() == q.scalar_type(), op, ": k should have the dtype of q, ",
        dtype_text(q.scalar_type()), ", got ", dtype_text(k.scalar_type()));
  check_same_device(op, "k", k, "q", q);
  return {dtype, q.size(0), q.size(1), q.size(2), k.size(2), q.size(3)};
}

}  // namespace fiqa_fast
