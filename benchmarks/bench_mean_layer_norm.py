# SPDX-License-Identifier: Apache-2.0
"""mean_layer_norm against LayerNorm and mean in eager torch, [32, 196, 512]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

SHAPE = (32, 196, 512)


def eager(x, weight, bias):
    return F.layer_norm(x, x.shape[-1:], weight, bias).mean(1)


@pytest.mark.parametrize("function", [eager, ops.mean_layer_norm], ids=["eager", "fiqa_fast"])
def test_mean_layer_norm(function, dtype, device, time_it):
    x = torch.randn(SHAPE, device=device).to(dtype)
    weight = torch.rand(SHAPE[-1], device=device).to(dtype)
    bias = torch.randn(SHAPE[-1], device=device).to(dtype)
    expected = reference.mean_layer_norm(x, weight, bias)
    tolerance = 1e-5 if function is ops.mean_layer_norm or dtype == torch.float32 else 5e-2
    torch.testing.assert_close(function(x, weight, bias).double(), expected, rtol=0, atol=tolerance)
    time_it(function, x, weight, bias)
