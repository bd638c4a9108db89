# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import views
from torch import nn

from fiqa_fast import _load, ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# N around the 32 tokens of a chunk, D around the 16 lanes of a vector and 16 bytes of a CUDA load.
SHAPES = [
    *((1, 1, 1), (2, 3, 15), (1, 31, 16), (3, 32, 17), (2, 33, 8), (2, 65, 24)),
    *((2, 144, 512), (1, 197, 384), (1, 5, 1000), (1, 2, 4100)),
]


def inputs(shape, dtype, device):
    B, N, D = shape
    return (
        torch.randn(shape, device=device).to(dtype),
        torch.rand(D, device=device) + 0.5,
        torch.randn(D, device=device).to(dtype),
        1e-5,
        torch.randn(N, D, device=device),
    )


@pytest.fixture
def assert_exact(assert_as_exact_as):
    def check(x, weight, bias, eps, w):
        """The eager computation is in float32 throughout, the hardest to match."""
        g, b = (None if p is None else p.float() for p in (weight, bias))
        eager = (F.layer_norm(x.float(), x.shape[-1:], g, b, eps) * w).sum((1, 2))
        expected = reference.layer_norm_dot(x, weight, bias, eps, w)
        # Terms cancel over tokens and channels, and where the bias does against the rest.
        terms = F.layer_norm(x.double(), x.shape[-1:], None, None, eps).abs()
        if g is not None:
            terms = terms * g.double().abs()
        if b is not None:
            terms = terms + b.double().abs()
        scale = (terms * w.double().abs()).sum((1, 2))
        got = ops.layer_norm_dot(x, weight, bias, eps, w)
        assert_as_exact_as(got, eager, expected, scale)

    return check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, device, assert_exact):
    assert_exact(*inputs(shape, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_matches_reference(shape, dtype, isa, assert_exact):
    assert_exact(*inputs(shape, dtype, "cpu"))


@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_and_bias_are_optional_and_of_any_dtype(
    has_weight, has_bias, dtype, device, assert_exact
):
    x, w = torch.randn(2, 40, 72, device=device), torch.randn(40, 72, device=device)
    # Strided: parameters may be views, too.
    weight = torch.randn(72, 2, device=device).to(dtype)[:, 0] if has_weight else None
    bias = torch.randn(72, 3, device=device).to(dtype)[:, 1] if has_bias else None
    assert_exact(x, weight, bias, 1e-6, w)


def test_is_an_affine_head_in_evaluation_mode(device):
    """Linear, BatchNorm, Linear, BatchNorm, Linear over the flattened normed tokens."""
    B, N, D = 3, 36, 32
    head = nn.Sequential(
        *(nn.Linear(N * D, 24), nn.BatchNorm1d(24), nn.Linear(24, 16)),
        *(nn.BatchNorm1d(16), nn.Linear(16, 1)),
    )
    for layer in head:
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    head = head.double().eval().to(device)
    norm = nn.LayerNorm(D, eps=1e-6).to(device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(B, N, D, device=device)
    with torch.no_grad():
        constant = head(torch.zeros(1, N * D, dtype=torch.float64, device=device))
        w = (head(torch.eye(N * D, dtype=torch.float64, device=device)) - constant).view(N, D)
        expected = head(norm.double()(x.double()).flatten(1))[:, 0]
        got = ops.layer_norm_dot(x, norm.weight.float(), norm.bias.float(), 1e-6, w.float())
    torch.testing.assert_close(got.double() + constant[0], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 37, 64), (3, 65, 45), (1, 4, 1)])
def test_layout_does_not_change_a_bit(shape, dtype, device):
    x, weight, bias, eps, w = inputs(shape, dtype, device)
    expected = ops.layer_norm_dot(x, weight, bias, eps, w)
    for name, view in views(x):
        assert torch.equal(view, x), name
        assert torch.equal(ops.layer_norm_dot(view, weight, bias, eps, w), expected), name
    for name, view in views(w):
        assert torch.equal(view, w), name
        assert torch.equal(ops.layer_norm_dot(x, weight, bias, eps, view), expected), name
    weight, bias = (p.repeat_interleave(2)[::2] for p in (weight, bias))
    assert torch.equal(ops.layer_norm_dot(x, weight, bias, eps, w), expected)


def test_expanded_inputs(device):
    x, w = torch.randn(1, 1, 48, device=device), torch.randn(1, 48, device=device)
    x, w = x.expand(3, 50, 48), w.expand(50, 48)
    expected = ops.layer_norm_dot(x.contiguous(), None, None, 1e-5, w.contiguous())
    assert torch.equal(ops.layer_norm_dot(x, None, None, 1e-5, w), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_w_as_it_is_does_not_change_a_bit(dtype, device):
    """Without LayerNorm's weight and bias, and with whole vectors, w needs no preparation."""
    x, _, _, eps, w = inputs((2, 37, 64), dtype, device)
    ones, zeros = torch.ones(64, device=device), torch.zeros(64, device=device)
    expected = ops.layer_norm_dot(x, ones, zeros, eps, w)
    assert torch.equal(ops.layer_norm_dot(x, None, None, eps, w), expected)
    assert torch.equal(ops.layer_norm_dot(x, None, None, eps, w.mT.contiguous().mT), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 100, 512), (5, 33, 40)])
def test_threads_and_batch_do_not_change_a_bit(shape, dtype, isa, set_threads):
    x, *rest = inputs(shape, dtype, "cpu")
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(ops.layer_norm_dot(x, *rest))
        for split in (1, 2, 5):
            parts = [ops.layer_norm_dot(part, *rest) for part in x.split(split)]
            results.append(torch.cat(parts))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.cuda
def test_batch_does_not_change_a_bit_on_cuda():
    x, *rest = inputs((7, 100, 512), torch.bfloat16, "cuda")
    parts = [ops.layer_norm_dot(part, *rest) for part in x.split(2)]
    assert torch.equal(torch.cat(parts), ops.layer_norm_dot(x, *rest))


def test_avx2_and_avx512_agree_to_the_bit():
    if "avx512" not in _load.supported_isas():
        pytest.skip("this processor has no avx512")
    arguments = inputs((3, 70, 100), torch.float32, "cpu")
    before = _load.isa()
    results = []
    for level in ("avx2", "avx512"):
        _load.set_isa(level)
        results.append(ops.layer_norm_dot(*arguments))
    _load.set_isa(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_large_offsets(offset, device, assert_exact):
    """E[x^2] - E[x]^2 would find no variance at all here.

    The sum over w is large, so what the computed mean lacks to the exact one would show.
    """
    x = offset + torch.randn(2, 50, 512, device=device)
    w = 1 + torch.rand(50, 512, device=device)
    assert_exact(x, None, None, 1e-5, w)
    # Stricter than eager, which is off by the rounding of its mean.
    got = ops.layer_norm_dot(x, None, None, 1e-5, w)
    expected = reference.layer_norm_dot(x, None, None, 1e-5, w)
    assert (got - expected).abs().max() < 2**-20 * w.sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_image(value, dtype, device):
    x, *rest = inputs((3, 40, 33), dtype, device)
    clean = ops.layer_norm_dot(x, *rest)
    x[1, 35, 32] = value
    got = ops.layer_norm_dot(x, *rest)
    assert got[1].isnan()
    assert torch.equal(got[::2], clean[::2])


def test_constant_rows(device):
    x = torch.full((1, 3, 20), 7.25, device=device)
    bias = torch.arange(20.0, device=device)
    w = torch.ones(3, 20, device=device)
    got = ops.layer_norm_dot(x, None, bias, 1e-5, w)
    assert torch.equal(got, 3 * bias.sum()[None])
    assert ops.layer_norm_dot(x, None, None, 0.0, w).isnan().all()
    # Positive, though float32 has no such number.
    assert torch.equal(ops.layer_norm_dot(x, None, bias, 1e-60, w), 3 * bias.sum()[None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype, device):
    x, *rest = inputs((0, 5, 8), dtype, device)
    got = ops.layer_norm_dot(x, *rest)
    assert got.shape == (0,)
    assert got.dtype == torch.float32
    assert got.device.type == device


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    B=st.integers(1, 4),
    N=st.integers(1, 70),
    D=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 3.0, -300.0]),
    affine=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(B, N, D, dtype, offset, affine, seed, assert_exact):
    generator = torch.Generator().manual_seed(seed)
    x = (offset + torch.randn(B, N, D, generator=generator)).to(dtype)
    weight = torch.randn(D, generator=generator) if affine else None
    bias = torch.randn(D, generator=generator).to(dtype) if affine else None
    assert_exact(x, weight, bias, 1e-5, torch.randn(N, D, generator=generator))


X = torch.zeros(2, 3, 4)
P = torch.ones(4)
W = torch.ones(3, 4)
REFUSED = [
    ((X[0], None, None, 0.1, W), r"layer_norm_dot: x should be \[B, N, D\], got \[3, 4\]"),
    ((X[:, :0], None, None, 0.1, W), r"N > 0 tokens of D > 0 channels, got \[2, 0, 4\]"),
    ((X[..., :0], None, None, 0.1, W), r"N > 0 tokens of D > 0 channels, got \[2, 3, 0\]"),
    (
        (X.double(), None, None, 0.1, W),
        r"x should be float32, bfloat16 or float16, got torch\.float64",
    ),
    ((X, P.double(), None, 0.1, W), r"weight should be float32, .* got torch\.float64"),
    ((X, P[:3], None, 0.1, W), r"weight should have shape \[4\], the last of x, got \[3\]"),
    ((X, P, X, 0.1, W), r"bias should have shape \[4\], the last of x, got \[2, 3, 4\]"),
    ((X, None, None, -1e-5, W), r"eps should be finite and not negative, got -1e-05"),
    ((X, None, None, float("nan"), W), r"eps should be finite and not negative, got nan"),
    (
        (X, None, None, 0.1, P),
        r"layer_norm_dot: w should have shape \[3, 4\], the tokens and channels of x, got \[4\]",
    ),
    ((X, None, None, 0.1, W[:2]), r"w should have shape \[3, 4\], .* got \[2, 4\]"),
    ((X, None, None, 0.1, W[:, :3]), r"w should have shape \[3, 4\], .* got \[3, 3\]"),
    ((X, None, None, 0.1, W.bfloat16()), r"w should be float32, got torch\.bfloat16"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
@pytest.mark.parametrize("kind", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_refuses_by_name(arguments, text, kind):
    moved = [a.to(kind) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=text):
        ops.layer_norm_dot(*moved)


@pytest.mark.cuda
def test_refuses_parameters_of_another_device():
    with pytest.raises(RuntimeError, match="w should be on the device of x, cuda:0, got cpu"):
        ops.layer_norm_dot(X.cuda(), None, None, 0.1, W)
