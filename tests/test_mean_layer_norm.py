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
# N around the 32 tokens of a chunk, D around the 16 lanes of a vector and 16 bytes of a CUDA load.
SHAPES = [
    *((1, 1, 1), (2, 3, 15), (1, 31, 16), (3, 32, 17), (2, 33, 8), (2, 65, 24)),
    *((2, 196, 512), (1, 197, 384), (1, 5, 1000), (1, 2, 4100)),
]
# Of x and a residual.
PAIRS = [
    *((torch.float32, dtype) for dtype in DTYPES),
    *((dtype, dtype) for dtype in (torch.bfloat16, torch.float16)),
]


def eager_norm(x, weight, bias, eps=1e-5):
    """In float32 throughout, the hardest to match."""
    return F.layer_norm(
        x.float(),
        x.shape[-1:],
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
        eps,
    )


def eager(x, weight, bias, eps=1e-5):
    return eager_norm(x, weight, bias, eps).mean(1)


def inputs(shape, dtype, device):
    D = shape[-1]
    return (
        torch.randn(shape, device=device).to(dtype),
        torch.rand(D, device=device) + 0.5,
        torch.randn(D, device=device).to(dtype),
    )


def inputs_of_map(shape, pair, device):
    """x, weight, bias, eps, u, residual."""
    x, weight, bias = inputs(shape, pair[0], device)
    residual = torch.randn(shape, device=device).to(pair[1])
    u = torch.randn(shape[0], shape[2], device=device)
    return x, weight, bias, 1e-5, u, residual


def check_map(arguments, assert_as_exact_as):
    x, weight, bias, eps, u, residual = arguments
    z = x.float() if residual is None else x.float() + residual.float()
    got = ops.mean_layer_norm_map(*arguments)
    want = reference.mean_layer_norm_map(*arguments)
    y = eager_norm(z, weight, bias, eps)
    terms = F.layer_norm(z.double(), z.shape[-1:], None, None, eps).abs()
    terms = terms if weight is None else terms * weight.double().abs()
    terms = terms if bias is None else terms + bias.double().abs()
    # Normalised values are of the order of one, whatever their mean.
    assert_as_exact_as(got.mean, y.mean(1), want.mean, terms)
    products = (terms * u.double().abs()[:, None]).sum(2)
    assert_as_exact_as(got.map, (y @ u[..., None])[..., 0], want.map, products)
    # To the bit: neither the map nor where the sum is formed changes anything.
    assert torch.equal(got.mean, ops.mean_layer_norm(x, weight, bias, eps, residual))
    in_memory = ops.mean_layer_norm_map(z, weight, bias, eps, u)
    if residual is not None:
        assert all(map(torch.equal, got, in_memory))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_and_map_match_reference(shape, pair, device, assert_as_exact_as):
    check_map(inputs_of_map(shape, pair, device), assert_as_exact_as)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_and_map_match_reference_at_every_isa(shape, pair, isa, assert_as_exact_as):
    check_map(inputs_of_map(shape, pair, "cpu"), assert_as_exact_as)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_map_of_x_alone(shape, dtype, device, assert_as_exact_as):
    *arguments, _ = inputs_of_map(shape, (dtype, dtype), device)
    check_map((*arguments, None), assert_as_exact_as)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, device, assert_as_exact_as):
    x, weight, bias = inputs(shape, dtype, device)
    got = ops.mean_layer_norm(x, weight, bias, 1e-5)
    expected = reference.mean_layer_norm(x, weight, bias, 1e-5)
    assert_as_exact_as(got, eager(x, weight, bias), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_matches_reference(shape, dtype, isa, assert_as_exact_as):
    x, weight, bias = inputs(shape, dtype, "cpu")
    got = ops.mean_layer_norm(x, weight, bias, 1e-5)
    expected = reference.mean_layer_norm(x, weight, bias, 1e-5)
    assert_as_exact_as(got, eager(x, weight, bias), expected)


@pytest.mark.parametrize("has_weight", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_and_bias_are_optional_and_of_any_dtype(
    has_weight, has_bias, dtype, device, assert_as_exact_as
):
    x = torch.randn(2, 40, 72, device=device)
    # Strided: parameters may be views, too.
    weight = torch.randn(72, 2, device=device).to(dtype)[:, 0] if has_weight else None
    bias = torch.randn(72, 3, device=device).to(dtype)[:, 1] if has_bias else None
    got = ops.mean_layer_norm(x, weight, bias, 1e-6)
    expected = reference.mean_layer_norm(x, weight, bias, 1e-6)
    assert_as_exact_as(got, eager(x, weight, bias, 1e-6), expected)
    u = torch.randn(2, 72, device=device)
    check_map((x, weight, bias, 1e-6, u, x.flip(1)), assert_as_exact_as)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 37, 64), (3, 65, 45), (1, 4, 1)])
def test_layout_does_not_change_a_bit(shape, dtype, device):
    x, weight, bias = inputs(shape, dtype, device)
    expected = ops.mean_layer_norm(x, weight, bias, 1e-5)
    for name, view in views(x):
        assert torch.equal(view, x), name
        assert torch.equal(ops.mean_layer_norm(view, weight, bias, 1e-5), expected), name


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("shape", [(2, 37, 64), (3, 65, 45), (1, 4, 1)])
def test_layout_of_residual_and_u_does_not_change_a_bit(shape, pair, device):
    x, weight, bias, eps, u, residual = inputs_of_map(shape, pair, device)
    expected = ops.mean_layer_norm_map(x, weight, bias, eps, u, residual)
    for name, view in views(residual):
        got = ops.mean_layer_norm_map(x, weight, bias, eps, u, view)
        assert all(map(torch.equal, got, expected)), name
    for name, view in views(x):
        got = ops.mean_layer_norm_map(view, weight, bias, eps, u, residual)
        assert all(map(torch.equal, got, expected)), name
    for name, view in views(u[None]):
        got = ops.mean_layer_norm_map(x, weight, bias, eps, view[0], residual)
        assert all(map(torch.equal, got, expected)), name


def test_one_direction_for_all_images(device):
    x, weight, bias, eps, u, _ = inputs_of_map((3, 40, 48), (torch.float32,) * 2, device)
    expanded = u[1].expand(3, 48)
    expected = ops.mean_layer_norm_map(x, weight, bias, eps, expanded.contiguous())
    got = ops.mean_layer_norm_map(x, weight, bias, eps, expanded)
    assert torch.equal(got.map, expected.map)
    own = ops.mean_layer_norm_map(x, weight, bias, eps, u)
    assert torch.equal(got.map[1], own.map[1])
    assert not torch.equal(got.map[0], own.map[0])


def test_expanded_input(device):
    x = torch.randn(1, 1, 48, device=device)
    expanded = x.expand(3, 50, 48)
    expected = ops.mean_layer_norm(expanded.contiguous(), None, None, 1e-5)
    assert torch.equal(ops.mean_layer_norm(expanded, None, None, 1e-5), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 100, 512), (5, 33, 40)])
def test_threads_and_batch_do_not_change_a_bit(shape, dtype, isa, set_threads):
    x, weight, bias = inputs(shape, dtype, "cpu")
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(ops.mean_layer_norm(x, weight, bias, 1e-5))
        for split in (1, 2, 5):
            parts = [ops.mean_layer_norm(part, weight, bias, 1e-5) for part in x.split(split)]
            results.append(torch.cat(parts))
    assert all(torch.equal(result, results[0]) for result in results)


def in_parts(arguments, split):
    x, weight, bias, eps, u, residual = arguments
    groups = zip(*(t.split(split) for t in (x, u, residual)), strict=True)
    parts = [ops.mean_layer_norm_map(x, weight, bias, eps, u, r) for x, u, r in groups]
    return [torch.cat(values) for values in zip(*parts, strict=True)]


@pytest.mark.parametrize("shape", [(7, 100, 512), (5, 33, 40)])
def test_threads_and_batch_do_not_change_a_bit_of_the_map(shape, isa, set_threads):
    arguments = inputs_of_map(shape, (torch.float32, torch.bfloat16), "cpu")
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results += [in_parts(arguments, split) for split in (1, 2, 5, 7)]
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@pytest.mark.cuda
def test_batch_does_not_change_a_bit_on_cuda():
    x, weight, bias = inputs((7, 100, 512), torch.bfloat16, "cuda")
    parts = [ops.mean_layer_norm(part, weight, bias, 1e-5) for part in x.split(2)]
    assert torch.equal(torch.cat(parts), ops.mean_layer_norm(x, weight, bias, 1e-5))
    arguments = inputs_of_map((7, 100, 512), (torch.float32, torch.bfloat16), "cuda")
    assert all(map(torch.equal, in_parts(arguments, 2), in_parts(arguments, 7)))


def test_avx2_and_avx512_agree_to_the_bit():
    if "avx512" not in _load.supported_isas():
        pytest.skip("this processor has no avx512")
    x, weight, bias = inputs((3, 70, 100), torch.float32, "cpu")
    before = _load.isa()
    results = []
    for level in ("avx2", "avx512"):
        _load.set_isa(level)
        u = x[:, 0].flip(1)
        results.append(ops.mean_layer_norm_map(x, weight, bias, 1e-5, u, x.flip(1)))
    _load.set_isa(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_large_offsets(offset, device, assert_as_exact_as):
    """E[x^2] - E[x]^2 would find no variance at all here."""
    x = offset + torch.randn(2, 50, 512, device=device)
    got = ops.mean_layer_norm(x, None, None, 1e-5)
    expected = reference.mean_layer_norm(x, None, None, 1e-5)
    assert_as_exact_as(got, eager(x, None, None), expected)
    # Stricter than eager, which is off by the rounding of its mean.
    assert (got - expected).abs().max() < 1e-6
    # Half of the offset in either; u has a mean, too, or the rounding would not show.
    u, residual = torch.rand(2, 512, device=device), torch.full_like(x, offset)
    got = ops.mean_layer_norm_map(x - offset, None, None, 1e-5, u, residual)
    z = (x - offset) + residual
    want = reference.mean_layer_norm_map(z, None, None, 1e-5, u)
    assert (got.mean - want.mean).abs().max() < 1e-6
    assert (got.map - want.map).abs().max() < 1e-4


def test_float16_special_values(isa):
    """Subnormals, the largest number and both zeros are widened exactly."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16)
    x = x[x.isfinite()].view(1, 1, -1)
    x = torch.cat([x, torch.zeros_like(x)], dim=1)
    # A weight of one and a variance of the order of 1e8: compare the exact float32 path.
    expected = ops.mean_layer_norm(x.float(), None, None, 1e-5)
    assert torch.equal(ops.mean_layer_norm(x, None, None, 1e-5), expected)
    tiny = torch.full((1, 1, 16), 2.0**-24, dtype=torch.float16)
    tiny[..., ::2] = 0
    expected = reference.mean_layer_norm(tiny, None, None, 0.0)
    torch.testing.assert_close(ops.mean_layer_norm(tiny, None, None, 0.0).double(), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_image(value, dtype, device):
    x = torch.randn(3, 40, 33, device=device).to(dtype)
    clean = ops.mean_layer_norm(x, None, None, 1e-5)
    x[1, 35, 32] = value
    got = ops.mean_layer_norm(x, None, None, 1e-5)
    assert got[1].isnan().all()
    assert torch.equal(got[::2], clean[::2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_nan_and_infinity_stay_in_their_token_of_the_map(value, pair, device):
    arguments = inputs_of_map((3, 40, 33), pair, device)
    x, _, _, _, u, residual = arguments
    clean = ops.mean_layer_norm_map(*arguments)
    others = torch.ones(3, 40, dtype=torch.bool, device=device)
    others[1, 35] = False
    for tensor in (x, residual):
        before = tensor[1, 35, 32].clone()
        tensor[1, 35, 32] = value
        got = ops.mean_layer_norm_map(*arguments)
        assert got.map[1, 35].isnan()
        assert torch.equal(got.map[others], clean.map[others])
        assert got.mean[1].isnan().all()
        assert torch.equal(got.mean[::2], clean.mean[::2])
        tensor[1, 35, 32] = before
    u[1, 32] = value
    got = ops.mean_layer_norm_map(*arguments)
    assert not got.map[1].isfinite().any()
    assert torch.equal(got.map[::2], clean.map[::2])
    assert torch.equal(got.mean, clean.mean)


def test_constant_rows(device):
    x = torch.full((1, 3, 20), 7.25, device=device)
    bias = torch.arange(20.0, device=device)
    assert torch.equal(ops.mean_layer_norm(x, None, bias, 1e-5), bias[None])
    assert ops.mean_layer_norm(x, None, None, 0.0).isnan().all()
    u = torch.arange(20.0, device=device)[None]
    got = ops.mean_layer_norm_map(x, None, bias, 1e-5, u, x)
    assert torch.equal(got.mean, bias[None])
    assert torch.equal(got.map, (bias @ u[0]).expand(1, 3))
    # Positive, though float32 has no such number.
    assert torch.equal(ops.mean_layer_norm(x, None, bias, 1e-60), bias[None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype, device):
    got = ops.mean_layer_norm(torch.empty(0, 5, 8, dtype=dtype, device=device), None, None, 1e-5)
    assert got.shape == (0, 8)
    assert got.dtype == torch.float32
    assert got.device.type == device
    got = ops.mean_layer_norm_map(*inputs_of_map((0, 5, 8), (dtype, dtype), device))
    assert [tuple(t.shape) for t in got] == [(0, 8), (0, 5)]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    B=st.integers(1, 4),
    N=st.integers(1, 70),
    D=st.integers(1, 140),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 3.0, -300.0]),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(B, N, D, dtype, offset, seed, assert_as_exact_as):
    generator = torch.Generator().manual_seed(seed)
    x = (offset + torch.randn(B, N, D, generator=generator)).to(dtype)
    expected = reference.mean_layer_norm(x, None, None, 1e-5)
    # Normalised values are of the order of one, whatever their mean: they cancel where N is large.
    scale = torch.maximum(expected.abs().max(), torch.tensor(1.0))
    got = ops.mean_layer_norm(x, None, None, 1e-5)
    assert_as_exact_as(got, eager(x, None, None), expected, scale)
    affine = [torch.randn(D, generator=generator) if seed % 2 else None for _ in range(2)]
    residual = torch.randn(B, N, D, generator=generator).to(dtype) if seed % 3 else None
    u = torch.randn(B, D, generator=generator)
    check_map((x, *affine, 1e-5, u, residual), assert_as_exact_as)


X = torch.zeros(2, 3, 4)
W = torch.ones(4)
REFUSED = [
    ((X[0], None, None, 0.1), r"mean_layer_norm: x should be \[B, N, D\], got \[3, 4\]"),
    ((X[:, :0], None, None, 0.1), r"N > 0 tokens of D > 0 channels, got \[2, 0, 4\]"),
    ((X[..., :0], None, None, 0.1), r"N > 0 tokens of D > 0 channels, got \[2, 3, 0\]"),
    (
        (X.double(), None, None, 0.1),
        r"x should be float32, bfloat16 or float16, got torch\.float64",
    ),
    ((X.int(), None, None, 0.1), r"x should be float32, bfloat16 or float16, got torch\.int32"),
    ((X, W.double(), None, 0.1), r"weight should be float32, .* got torch\.float64"),
    ((X, W[:3], None, 0.1), r"weight should have shape \[4\], the last of x, got \[3\]"),
    ((X, W, X, 0.1), r"bias should have shape \[4\], the last of x, got \[2, 3, 4\]"),
    ((X, None, None, -1e-5), r"eps should be finite and not negative, got -1e-05"),
    ((X, None, None, float("nan")), r"eps should be finite and not negative, got nan"),
    ((X, None, None, float("inf")), r"eps should be finite and not negative, got inf"),
    ((X, None, None, 0.1, X[:1]), r"residual should have the shape of x, \[2, 3, 4\], got \[1, 3"),
    ((X, None, None, 0.1, X[0]), r"residual should have the shape of x, .* got \[3, 4\]"),
    ((X, None, None, 0.1, X.double()), r"residual should be float32, .* got torch\.float64"),
    (
        (X.bfloat16(), None, None, 0.1, X),
        r"residual should have the dtype of x, torch\.bfloat16, where .* got torch\.float32",
    ),
    (
        (X.half(), None, None, 0.1, X.bfloat16()),
        r"residual should have the dtype of x, torch\.float16, where .* got torch\.bfloat16",
    ),
]
U = torch.zeros(2, 4)
REFUSED_MAPS = [
    ((X, None, None, -1.0, U), r"mean_layer_norm: eps should be finite and not negative, got -1"),
    ((X, None, None, 0.1, U[:1]), r"u should have shape \[2, 4\], the images .* got \[1, 4\]"),
    ((X, None, None, 0.1, U[:, :3]), r"u should have shape \[2, 4\], .* got \[2, 3\]"),
    ((X, None, None, 0.1, W), r"u should have shape \[2, 4\], .* got \[4\]"),
    ((X, None, None, 0.1, U.half()), r"u should be float32, got torch\.float16"),
    ((X, None, None, 0.1, U, X[:, :2]), r"residual should have the shape of x, .* \[2, 2, 4\]"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
@pytest.mark.parametrize("kind", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_refuses_by_name(arguments, text, kind):
    moved = [a.to(kind) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=text):
        ops.mean_layer_norm(*moved)


@pytest.mark.parametrize(("arguments", "text"), REFUSED_MAPS)
@pytest.mark.parametrize("kind", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_refuses_maps_by_name(arguments, text, kind):
    moved = [a.to(kind) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=text):
        ops.mean_layer_norm_map(*moved)


@pytest.mark.cuda
def test_refuses_parameters_of_another_device():
    with pytest.raises(RuntimeError, match="weight should be on the device of x, cuda:0, got cpu"):
        ops.mean_layer_norm(X.cuda(), W, None, 0.1)
