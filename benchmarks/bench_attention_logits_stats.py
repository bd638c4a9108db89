# SPDX-License-Identifier: Apache-2.0
"""attention_logits_stats against eager torch, which forms the logits, B 32, H 8, N 196, d 64."""

from __future__ import annotations

import pytest
import torch

from fiqa_fast import ops, reference

B, H, N, d = 32, 8, 196, 64
SCALE = d**-0.5


def eager(q, k, stats):
    A = SCALE * q @ k.transpose(-2, -1)
    if stats == "moments":
        return A.mean((1, 2, 3)), A.amax((1, 2, 3)), A.var((1, 2, 3))
    if stats == "centered_variance":
        A = A - A.mean(3, keepdim=True) - A.mean(2, keepdim=True) + A.mean((2, 3), keepdim=True)
        return (A.square().mean((1, 2, 3)),)
    if stats == "softmax":
        return A.logsumexp(3), torch.special.entr(A.softmax(3)).sum(3)
    return (A.flatten(1).median(1).values,)


def chosen(got, stats):
    """What eager returns, of AttentionLogitsStats."""
    if stats == "moments":
        return got.image.mean, got.image.max, got.image.unbiased_variance
    if stats == "centered_variance":
        return (got.image.centered_variance,)
    return (got.logsumexp, got.entropy) if stats == "softmax" else (got.median,)


def fiqa_fast(q, k, stats):
    return chosen(ops.attention_logits_stats(q, k, SCALE, (stats,)), stats)


@pytest.mark.parametrize("stats", ["moments", "centered_variance", "softmax", "median"])
@pytest.mark.parametrize("function", [eager, fiqa_fast])
def test_attention_logits_stats(function, stats, dtype, device, time_it):
    q, k, _ = torch.randn(B, N, 3, H, d, device=device).to(dtype).permute(2, 0, 3, 1, 4)
    expected = chosen(reference.attention_logits_stats(q, k, SCALE, (stats,)), stats)
    tolerance = 1e-4 if function is fiqa_fast or dtype == torch.float32 else 5e-2
    for got, want in zip(function(q, k, stats), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    time_it(function, q, k, stats)
