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
# B and O around the rows taken together, K around a vector, a tile and a chunk of 2048.
SHAPES = [
    *((1, 1, 1), (3, 15, 5), (4, 16, 16), (5, 17, 33), (33, 64, 40), (9, 130, 7)),
    *((2, 512, 1024), (7, 2047, 3), (6, 2048, 18), (5, 2064, 9), (2, 9000, 31)),
]


def inputs(shape, dtype, device):
    B, K, outputs = shape
    return (
        torch.randn(B, K, device=device),
        torch.randn(outputs, K, device=device).to(dtype),
        torch.randn(outputs, device=device).to(dtype),
    )


@pytest.fixture
def assert_exact(assert_as_exact_as):
    def check(x, weight, bias):
        expected = reference.batch_invariant_linear(x, weight, bias)
        eager = F.linear(x, weight.float(), None if bias is None else bias.float())
        terms = F.linear(x.double().abs(), weight.double().abs())
        assert_as_exact_as(ops.batch_invariant_linear(x, weight, bias), eager, expected, terms)

    return check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, device, assert_exact):
    assert_exact(*inputs(shape, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_matches_reference(shape, dtype, isa, assert_exact):
    assert_exact(*inputs(shape, dtype, "cpu"))


@pytest.mark.parametrize("bias_dtype", [None, *DTYPES])
def test_bias_is_optional_and_of_any_dtype(bias_dtype, device, assert_exact):
    x, weight, _ = inputs((3, 40, 12), torch.float32, device)
    # Strided: parameters may be views, too.
    bias = None if bias_dtype is None else torch.randn(12, 2, device=device).to(bias_dtype)[:, 1]
    assert_exact(x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 64, 9), (3, 45, 20), (1, 1, 1), (2, 2100, 3)])
def test_layout_does_not_change_a_bit(shape, dtype, device):
    x, weight, bias = inputs(shape, dtype, device)
    expected = ops.batch_invariant_linear(x, weight, bias)
    for name, view in views(x):
        assert torch.equal(ops.batch_invariant_linear(view, weight, bias), expected), name
    for name, view in views(weight):
        assert torch.equal(ops.batch_invariant_linear(x, view, bias), expected), name
    repeated = bias.repeat_interleave(2)[::2]
    assert torch.equal(ops.batch_invariant_linear(x, weight, repeated), expected)


def test_expanded_inputs(device):
    row, weight = torch.randn(1, 48, device=device), torch.randn(1, 48, device=device)
    got = ops.batch_invariant_linear(row.expand(5, 48), weight.expand(9, 48))
    assert torch.equal(got, ops.batch_invariant_linear(row, weight).expand(5, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(13, 2500, 35), (9, 100, 64)])
def test_threads_and_batch_do_not_change_a_bit(shape, dtype, isa, set_threads):
    x, *rest = inputs(shape, dtype, "cpu")
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(ops.batch_invariant_linear(x, *rest))
        for split in (1, 2, 3, 5):
            parts = [ops.batch_invariant_linear(part, *rest) for part in x.split(split)]
            results.append(torch.cat(parts))
        results.append(ops.batch_invariant_linear(x.flip(0), *rest).flip(0))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.cuda
def test_batch_does_not_change_a_bit_on_cuda():
    x, *rest = inputs((70, 2500, 35), torch.bfloat16, "cuda")
    parts = [ops.batch_invariant_linear(part, *rest) for part in x.split(33)]
    assert torch.equal(torch.cat(parts), ops.batch_invariant_linear(x, *rest))


def test_avx2_and_avx512_agree_to_the_bit():
    if "avx512" not in _load.supported_isas():
        pytest.skip("this processor has no avx512")
    arguments = inputs((3, 2100, 10), torch.bfloat16, "cpu")
    before = _load.isa()
    results = []
    for level in ("avx2", "avx512"):
        _load.set_isa(level)
        results.append(ops.batch_invariant_linear(*arguments))
    _load.set_isa(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_stay_in_their_row(value, device):
    x, weight, bias = inputs((3, 40, 33), torch.float32, device)
    clean = ops.batch_invariant_linear(x, weight, bias)
    x[1, 39] = value
    got = ops.batch_invariant_linear(x, weight, bias)
    assert torch.equal(got[::2], clean[::2])
    if value != value:
        assert got[1].isnan().all()
    else:
        assert torch.equal(got[1], value * weight[:, 39].sign())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype, device):
    got = ops.batch_invariant_linear(*inputs((0, 5, 8), dtype, device))
    assert got.shape == (0, 8)
    assert got.dtype == torch.float32
    assert got.device.type == device


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    B=st.integers(1, 40),
    K=st.one_of(st.integers(1, 140), st.integers(2000, 4200)),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(B, K, outputs, dtype, biased, seed, assert_exact):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, K, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator) if biased else None
    assert_exact(torch.randn(B, K, generator=generator), weight, bias)


X = torch.zeros(2, 3)
W = torch.zeros(4, 3)
REFUSED = [
    ((X[0], W, None), r"batch_invariant_linear: x should be \[B, K\], got \[3\]"),
    ((X, W[:, :2], None), r"weight should be \[O, 3\], with as many columns as x, got \[4, 2\]"),
    ((X, W[0], None), r"weight should be \[O, 3\], with as many columns as x, got \[3\]"),
    ((X, W[:0], None), r"weight should have O > 0 and K > 0, got \[0, 3\]"),
    ((X[:, :0], W[:, :0], None), r"weight should have O > 0 and K > 0, got \[4, 0\]"),
    ((X.bfloat16(), W, None), r"x should be float32, got torch\.bfloat16"),
    ((X, W.double(), None), r"weight should be float32, bfloat16 or float16, got torch\.float64"),
    ((X, W, W[:, 0].int()), r"bias should be float32, bfloat16 or float16, got torch\.int32"),
    ((X, W, X[0]), r"bias should have shape \[4\], one for each row of weight, got \[3\]"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
@pytest.mark.parametrize("kind", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_refuses_by_name(arguments, text, kind):
    moved = [a.to(kind) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError, match=text):
        ops.batch_invariant_linear(*moved)


@pytest.mark.cuda
def test_refuses_weights_of_another_device():
    with pytest.raises(RuntimeError, match="weight should be on the device of x, cuda:0, got cpu"):
        ops.batch_invariant_linear(X.cuda(), W)
