# SPDX-License-Identifier: Apache-2.0
"""attention_logits_mean against two eager computations, B 32, H 8, N 196, d 64.

`logits` forms the matrices, as the published code does; `factorised` uses the same algebra as the
operator, in eager torch.
"""

from __future__ import annotations

import pytest
import torch

from fiqa_fast import ops, reference

B, H, N, d = 32, 8, 196, 64
SCALE = d**-0.5


def logits(q, k):
    A = SCALE * q @ k.transpose(-2, -1)
    return A.mean((2, 3)), A.mean((1, 2)), A.mean((1, 3)), q.mean(2)


def factorised(q, k):
    q_mean = q.mean(2, dtype=torch.float32)
    k_mean = k.mean(2, dtype=torch.float32)
    return (
        SCALE * (q_mean * k_mean).sum(-1),
        SCALE / H * torch.einsum("bhnd,bhd->bn", k, q_mean.to(k.dtype)),
        SCALE / H * torch.einsum("bhnd,bhd->bn", q, k_mean.to(q.dtype)),
        q_mean,
    )


def fiqa_fast(q, k):
    return ops.attention_logits_mean(q, k, SCALE)


@pytest.mark.parametrize("layout", ["fused", "contiguous"])
@pytest.mark.parametrize("function", [logits, factorised, fiqa_fast])
def test_attention_logits_mean(function, layout, dtype, device, time_it):
    qkv = torch.randn(B, N, 3, H, d, device=device).to(dtype)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    if layout == "contiguous":
        q, k = q.contiguous(), k.contiguous()
    tolerance = 1e-5 if function is fiqa_fast or dtype == torch.float32 else 5e-2
    for got, expected in zip(
        function(q, k), reference.attention_logits_mean(q, k, SCALE), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)
    time_it(function, q, k)
