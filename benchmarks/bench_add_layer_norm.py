# SPDX-License-Identifier: Apache-2.0
"""add_layer_norm against addition, LayerNorm and cast in eager torch, [8, 144, 512]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

SHAPE = (8, 144, 512)


def eager(x, residual, weight, bias, eps, dtype):
    total = x + residual
    return total, F.layer_norm(total, x.shape[-1:], weight, bias, eps).to(dtype)


@pytest.mark.parametrize("function", [eager, ops.add_layer_norm], ids=["eager", "fiqa_fast"])
def test_add_layer_norm(function, dtype, device, time_it):
    x, residual = torch.randn(SHAPE, device=device), torch.randn(SHAPE, device=device).to(dtype)
    weight = torch.rand(SHAPE[-1], device=device)
    bias = torch.randn(SHAPE[-1], device=device)
    expected = reference.add_layer_norm(x, residual, weight, bias, 1e-5)
    total, normed, *_ = function(x, residual, weight, bias, 1e-5, dtype)
    torch.testing.assert_close(total.double(), expected.sum, rtol=0, atol=1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(normed.double(), expected.normed, rtol=0, atol=tolerance)
    time_it(function, x, residual, weight, bias, 1e-5, dtype)
