# SPDX-License-Identifier: Apache-2.0
"""batch_invariant_linear against torch's linear layer: pooled projections and an embedding head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

SHAPES = {"projections": (512, 1024), "head": (144 * 512, 512)}


def eager(x, weight, bias):
    return F.linear(x.to(weight.dtype), weight, bias.to(weight.dtype))


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "function", [eager, ops.batch_invariant_linear], ids=["eager", "fiqa_fast"]
)
def test_batch_invariant_linear(function, shape, rows, dtype, device, time_it):
    inputs, outputs = SHAPES[shape]
    x = torch.randn(rows, inputs, device=device)
    weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, device=device)
    expected = reference.batch_invariant_linear(x, weight, bias)
    fast = function is ops.batch_invariant_linear
    tolerance = 1e-4 if fast or dtype == torch.float32 else 5e-1
    got = function(x, weight, bias).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    time_it(function, x, weight, bias)
