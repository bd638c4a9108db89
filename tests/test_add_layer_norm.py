# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import views

from fiqa_fast import _load, ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# N around the 32 tokens of a chunk, D around the 16 lanes of a vector.
SHAPES = [
    *((1, 1, 1), (2, 3, 15), (1, 31, 16), (3, 32, 17), (2, 33, 8), (2, 65, 24)),
    *((2, 144, 512), (1, 5, 1000), (1, 2, 4100)),
]


def inputs(shape, dtype, device):
    B, N, D = shape
    return (
        torch.randn(shape, device=device),
        torch.randn(shape, device=device).to(dtype),
        torch.rand(D, device=device) + 0.5,
        torch.randn(D, device=device).to(dtype),
        1e-5,
    )


def check(arguments, assert_as_exact_as, out=torch.float32):
    x, residual, weight, bias, eps = arguments
    g, b = (None if p is None else p.float() for p in (weight, bias))
    total = x + residual.float()
    eager = F.layer_norm(total, x.shape[-1:], g, b, eps)
    want = reference.add_layer_norm(*arguments)
    got = ops.add_layer_norm(*arguments)
    assert torch.equal(got.sum, total)
    scale = F.layer_norm(total.double(), x.shape[-1:], None, None, eps).abs()
    scale = (scale if g is None else scale * g.double().abs()) + (
        0 if b is None else b.double().abs()
    )
    assert_as_exact_as(got.normed, eager, want.normed, scale)
    assert got.mean is None
    assert got.dot is None
    # A narrow dtype is the float32 result, rounded once.
    narrow = ops.add_layer_norm(*arguments, dtype=out)
    assert narrow.normed.dtype == out
    assert torch.equal(narrow.normed, got.normed.to(out))
    assert torch.equal(narrow.sum, got.sum)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, out, device, assert_as_exact_as):
    check(inputs(shape, dtype, device), assert_as_exact_as, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_matches_reference(shape, dtype, isa, assert_as_exact_as):
    check(inputs(shape, dtype, "cpu"), assert_as_exact_as, dtype)


@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_and_bias_are_optional_and_of_any_dtype(
    has_weight, has_bias, dtype, device, assert_as_exact_as
):
    x, residual = torch.randn(2, 40, 72, device=device), torch.randn(2, 40, 72, device=device)
    weight = torch.randn(72, 2, device=device).to(dtype)[:, 0] if has_weight else None
    bias = torch.randn(72, 3, device=device).to(dtype)[:, 1] if has_bias else None
    check((x, residual, weight, bias, 1e-6), assert_as_exact_as)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 65, 48), (2, 32, 64), (1, 33, 45), (2, 5, 512)])
def test_mean_and_dot_are_those_of_their_operators(shape, dtype, device):
    arguments = inputs(shape, dtype, device)
    _, _, weight, bias, eps = arguments
    plain = ops.add_layer_norm(*arguments)
    w = torch.randn(shape[1:], device=device)
    for first in (0, 1, shape[1] - 1):
        got = ops.add_layer_norm(*arguments, mean_from=first)
        assert torch.equal(got.mean, ops.mean_layer_norm(plain.sum[:, first:], weight, bias, eps))
        assert torch.equal(got.normed, plain.normed)
    # All tokens or some, as it is or strided: taken on the way, or afterwards.
    wide = torch.stack([w, w * 0], -1).flatten(-2)[:, ::2]
    for part in (w, w[:1], w[:-1], w.mT.contiguous().mT, wide, w[:1].expand(shape[1:])):
        got = ops.add_layer_norm(*arguments, mean_from=0, w=part)
        want = ops.layer_norm_dot(plain.sum[:, : len(part)], None, None, eps, part)
        assert torch.equal(got.dot, want)
        assert torch.equal(got.sum, plain.sum)
        assert torch.equal(got.normed, plain.normed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 37, 64), (3, 65, 45), (1, 4, 1)])
def test_layout_does_not_change_a_bit(shape, dtype, device):
    x, residual, *rest = inputs(shape, dtype, device)
    expected = ops.add_layer_norm(x, residual, *rest, dtype)
    for name, view in views(x):
        got = ops.add_layer_norm(view, residual, *rest, dtype)
        assert torch.equal(got.sum, expected.sum), name
        assert torch.equal(got.normed, expected.normed), name
    for name, view in views(residual):
        got = ops.add_layer_norm(x, view, *rest, dtype)
        assert torch.equal(got.sum, expected.sum), name
        assert torch.equal(got.normed, expected.normed), name
        assert got.sum.is_contiguous()
        assert got.normed.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 100, 512), (5, 33, 40)])
def test_threads_and_batch_do_not_change_a_bit(shape, dtype, isa, set_threads):
    x, residual, *rest = inputs(shape, dtype, "cpu")
    rest += [dtype, 1, torch.randn(shape[1:])]
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(ops.add_layer_norm(x, residual, *rest))
        for split in (1, 2, 5):
            pairs = zip(x.split(split), residual.split(split), strict=True)
            parts = [ops.add_layer_norm(*pair, *rest) for pair in pairs]
            results.append([torch.cat(values) for values in zip(*parts, strict=True)])
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_avx2_and_avx512_agree_to_the_bit():
    if "avx512" not in _load.supported_isas():
        pytest.skip("this processor has no avx512")
    arguments = (*inputs((3, 70, 100), torch.float16, "cpu"), torch.bfloat16)
    before = _load.isa()
    results = []
    for level in ("avx2", "avx512"):
        _load.set_isa(level)
        results.append(ops.add_layer_norm(*arguments))
    _load.set_isa(before)
    assert torch.equal(results[0].normed, results[1].normed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_torchs(dtype, isa):
    """Every kind of number: with a constant row the norm is the bias alone."""
    bits = torch.arange(0, 2**32, 65_521, dtype=torch.int64).to(torch.uint32).view(torch.int32)
    # Every narrow number, and float32's neighbours of it and of what lies between two of them.
    narrow = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    exact = narrow.view(torch.int32)
    half = 1 << (15 if dtype == torch.bfloat16 else 12)
    around = torch.cat([exact + near for near in (-1, 0, 1, half - 1, half, half + 1)])
    values = torch.cat([bits.view(torch.float32), around.view(torch.float32)])
    values = values[values != 0]  # 0 + -0 is 0
    x = torch.zeros(1, 1, len(values))
    got = ops.add_layer_norm(x, x, None, values, 1e-5, dtype).normed[0, 0]
    want = values.to(dtype)
    assert torch.equal(got.isnan(), want.isnan())
    clean = ~want.isnan()
    assert torch.equal(got[clean].view(torch.int16), want[clean].view(torch.int16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_stay_in_their_token(value, device):
    x, residual, *rest = inputs((3, 40, 33), torch.float32, device)
    clean = ops.add_layer_norm(x, residual, *rest)
    residual[1, 35, 32] = value
    got = ops.add_layer_norm(x, residual, *rest)
    assert got.normed[1, 35].isnan().all()
    keep = torch.ones(3, 40, dtype=torch.bool, device=device)
    keep[1, 35] = False
    assert torch.equal(got.normed[keep], clean.normed[keep])


def test_large_offsets(device, assert_as_exact_as):
    """E[x^2] - E[x]^2 would find no variance at all here."""
    x = 1e4 + torch.randn(2, 50, 512, device=device)
    got = ops.add_layer_norm(x, torch.zeros_like(x), None, None, 1e-5)
    want = reference.add_layer_norm(x, torch.zeros_like(x), None, None, 1e-5)
    assert (got.normed - want.normed).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype, device):
    arguments = inputs((0, 5, 8), dtype, device)
    got = ops.add_layer_norm(*arguments, dtype, 0, torch.zeros(5, 8, device=device))
    assert [tuple(t.shape) for t in got] == [(0, 5, 8), (0, 5, 8), (0, 8), (0,)]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    B=st.integers(1, 4),
    N=st.integers(1, 70),
    D=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    out=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 3.0, -300.0]),
    affine=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(B, N, D, dtype, out, offset, affine, seed, assert_as_exact_as):
    generator = torch.Generator().manual_seed(seed)
    x = offset + torch.randn(B, N, D, generator=generator)
    residual = torch.randn(B, N, D, generator=generator).to(dtype)
    weight = torch.randn(D, generator=generator) if affine else None
    bias = torch.randn(D, generator=generator).to(dtype) if affine else None
    check((x, residual, weight, bias, 1e-5), assert_as_exact_as, out)


X = torch.zeros(2, 3, 4)
P = torch.ones(4)
W = torch.ones(3, 4)
F32 = torch.float32
REFUSED = [
    ((X[0], X, None, None, 0.1), r"add_layer_norm: x should be \[B, N, D\], got \[3, 4\]"),
    ((X.half(), X, None, None, 0.1), r"x should be float32, got torch\.float16"),
    ((X, X[:1], None, None, 0.1), r"residual should have the shape of x, \[2, 3, 4\], got \[1, 3"),
    ((X, X.double(), None, None, 0.1), r"residual should be float32, .* got torch\.float64"),
    ((X, X, P[:3], None, 0.1), r"weight should have shape \[4\], the last of x, got \[3\]"),
    ((X, X, None, None, -0.1), r"eps should be finite and not negative, got -0\.1"),
    ((X, X, None, None, 0.1, F32, 3), r"mean_from should be -1 or a token of x, below 3, got 3"),
    ((X, X, None, None, 0.1, F32, None, P), r"w should have at most the tokens .* \[1 to 3, 4\]"),
    ((X, X, None, None, 0.1, F32, None, W[:0]), r"w should have at most .* got \[0, 4\]"),
    ((X, X, None, None, 0.1, F32, None, W[:, :3]), r"w should have at most .* got \[3, 3\]"),
    ((X, X, None, None, 0.1, F32, None, W.half()), r"w should be float32, got torch\.float16"),
    ((X, X, None, None, 0.1, torch.float64), r"dtype should be float32, .* got torch\.float64"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
@pytest.mark.parametrize("kind", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_refuses_by_name(arguments, text, kind):
    moved = [a.to(kind) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=text):
        ops.add_layer_norm(*moved)
