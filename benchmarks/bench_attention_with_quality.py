# SPDX-License-Identifier: Apache-2.0
"""Attention with its quality in four ways, B 32, H 8, N 196, d 64.

`attention` is torch's fused attention without quality: what the others cost beside it. `fiqa_fast`
adds the means of q and k; `tiles` adds a pass over all logits, which are reduced and dropped, the
price of a kernel that takes the mean from the products themselves; `logits` keeps the matrices, as
the published code does.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

B, H, N, d = 32, 8, 196, 64
SCALE = d**-0.5


def attention(q, k, v):
    return (F.scaled_dot_product_attention(q, k, v, scale=SCALE),)


def logits(q, k, v):
    A = SCALE * q @ k.transpose(-2, -1)
    return A.softmax(3) @ v, A.mean((1, 2)), A.mean((2, 3))


def tiles(q, k, v):
    stats = ops.attention_logits_stats(q, k, SCALE)
    return *attention(q, k, v), stats.key_map, stats.head.mean


def fiqa_fast(q, k, v):
    return ops.attention_with_quality(q, k, v, SCALE)


@pytest.mark.parametrize("function", [attention, logits, tiles, fiqa_fast])
def test_attention_with_quality(function, dtype, device, time_it):
    q, k, v = torch.randn(B, N, 3, H, d, device=device).to(dtype).permute(2, 0, 3, 1, 4)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    expected = reference.attention_with_quality(q, k, v, SCALE)
    for got, want in zip(function(q, k, v), expected, strict=False):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)
    time_it(function, q, k, v)
