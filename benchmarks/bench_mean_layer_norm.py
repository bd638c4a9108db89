# SPDX-License-Identifier: Apache-2.0
"""mean_layer_norm against LayerNorm and mean in eager torch, [32, 196, 512]; with a residual of
x's dtype, against their sum; and with a map, against a product of the normed tokens.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

SHAPE = (32, 196, 512)


def eager(x, weight, bias, residual=None):
    z = x if residual is None else x + residual
    return F.layer_norm(z, x.shape[-1:], weight, bias).mean(1)


def fused(x, weight, bias, residual=None):
    return ops.mean_layer_norm(x, weight, bias, 1e-5, residual)


def eager_map(x, weight, bias, u):
    y = F.layer_norm(x, x.shape[-1:], weight, bias)
    return y.mean(1), (y @ u.to(y.dtype)[..., None])[..., 0]


def fused_map(x, weight, bias, u):
    return ops.mean_layer_norm_map(x, weight, bias, 1e-5, u)


def inputs(dtype, device):
    x = torch.randn(SHAPE, device=device).to(dtype)
    weight = torch.rand(SHAPE[-1], device=device).to(dtype)
    bias = torch.randn(SHAPE[-1], device=device).to(dtype)
    return x, weight, bias


def check(got, expected, tolerance):
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("function", [eager, fused], ids=["eager", "fiqa_fast"])
def test_mean_layer_norm(function, dtype, device, time_it):
    arguments = inputs(dtype, device)
    exact = function is fused or dtype == torch.float32
    check(function(*arguments), reference.mean_layer_norm(*arguments), 1e-5 if exact else 5e-2)
    time_it(function, *arguments)


@pytest.mark.parametrize("function", [eager, fused], ids=["eager", "fiqa_fast"])
def test_mean_layer_norm_of_a_sum(function, dtype, device, time_it):
    arguments = inputs(dtype, device)
    residual = torch.randn(SHAPE, device=device).to(dtype)
    expected = reference.mean_layer_norm(*arguments, residual=residual)
    exact = function is fused or dtype == torch.float32
    check(function(*arguments, residual), expected, 1e-5 if exact else 5e-2)
    time_it(function, *arguments, residual)


@pytest.mark.parametrize("function", [eager_map, fused_map], ids=["eager", "fiqa_fast"])
def test_mean_layer_norm_map(function, dtype, device, time_it):
    arguments = inputs(dtype, device)
    u = torch.randn(SHAPE[0], SHAPE[2], device=device) / SHAPE[2] ** 0.5
    expected = reference.mean_layer_norm_map(*arguments, 1e-5, u)
    exact = function is fused_map or dtype == torch.float32
    mean, tokens = function(*arguments, u)
    check(mean, expected.mean, 1e-5 if exact else 5e-2)
    check(tokens, expected.map, 1e-5 if exact else 5e-2)
    time_it(function, *arguments, u)
