# SPDX-License-Identifier: Apache-2.0
"""layer_norm_dot against LayerNorm, product and sum in eager torch, [32, 144, 512]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

SHAPE = (32, 144, 512)


def eager(x, weight, bias, eps, w):
    return (F.layer_norm(x, x.shape[-1:], weight, bias, eps) * w).sum((1, 2))


@pytest.mark.parametrize("function", [eager, ops.layer_norm_dot], ids=["eager", "fiqa_fast"])
def test_layer_norm_dot(function, dtype, device, time_it):
    x = torch.randn(SHAPE, device=device).to(dtype)
    weight = torch.rand(SHAPE[-1], device=device).to(dtype)
    bias = torch.randn(SHAPE[-1], device=device).to(dtype)
    w = torch.randn(SHAPE[1:], device=device) / SHAPE[1]
    expected = reference.layer_norm_dot(x, weight, bias, 1e-5, w)
    tolerance = 1e-4 if function is ops.layer_norm_dot or dtype == torch.float32 else 5e-1
    got = function(x, weight, bias, 1e-5, w)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)
    time_it(function, x, weight, bias, 1e-5, w)
