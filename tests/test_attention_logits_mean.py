# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import attention_views

from fiqa_fast import _load, ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (B, H, Nq, Nk, d): N around the 32 tokens of a chunk, d around the 16 lanes of a vector.
SHAPES = [
    *((1, 1, 1, 1, 1), (2, 3, 31, 32, 15), (1, 2, 33, 64, 16), (3, 1, 5, 100, 17)),
    *((2, 8, 196, 196, 64), (1, 16, 145, 144, 32), (2, 2, 65, 3, 72), (1, 1, 4, 4, 2100)),
]


def inputs(shape, dtype, device):
    B, H, Nq, Nk, d = shape
    q = torch.randn(B, H, Nq, d, device=device).to(dtype)
    k = (torch.randn(B, H, Nk, d, device=device) + 0.25).to(dtype)
    return q, k, d**-0.5


def eager(q, k, scale):
    """Factorised too, in float32 throughout."""
    q, k = q.float(), k.float()
    q_mean, k_mean = q.mean(2), k.mean(2)
    H = q.shape[1]
    return ops.AttentionLogitsMean(
        scale * (q_mean * k_mean).sum(-1),
        scale / H * (k * q_mean[:, :, None]).sum((1, 3)),
        scale / H * (q * k_mean[:, :, None]).sum((1, 3)),
        q_mean,
    )


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check(q, k, scale, assert_as_exact_as):
    got = ops.attention_logits_mean(q, k, scale)
    expected = reference.attention_logits_mean(q, k, scale)
    # The terms, without their signs: sums of them cancel, and then no float32 sum is exact to an
    # ulp of the result.
    terms = reference.attention_logits_mean(q.abs(), k.abs(), scale)
    for name in got._fields:
        assert_as_exact_as(
            getattr(got, name),
            getattr(eager(q, k, scale), name),
            getattr(expected, name),
            getattr(terms, name),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, device, assert_as_exact_as):
    check(*inputs(shape, dtype, device), assert_as_exact_as)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_matches_reference(shape, dtype, isa, assert_as_exact_as):
    check(*inputs(shape, dtype, "cpu"), assert_as_exact_as)


def test_maps_average_to_the_score(device):
    got = ops.attention_logits_mean(*inputs((4, 8, 196, 196, 64), torch.float32, device))
    score = got.head_scores.mean(1)
    torch.testing.assert_close(got.key_map.mean(1), score, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.query_map.mean(1), score, rtol=1e-4, atol=1e-6)


def test_large_logits_keep_their_mean(device, assert_as_exact_as):
    q, k, scale = inputs((2, 2, 50, 50, 64), torch.float32, device)
    check(q + 1e4, k - 1e4, scale, assert_as_exact_as)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 8, 37, 37, 64), (3, 3, 65, 65, 15), (1, 2, 4, 4, 1)])
def test_layout_does_not_change_a_bit(shape, dtype, device):
    q, k, scale = inputs(shape, dtype, device)
    expected = ops.attention_logits_mean(q, k, scale)
    for name, q_view, k_view in attention_views(q, k):
        assert torch.equal(q_view, q), name
        assert torch.equal(k_view, k), name
        assert equal(ops.attention_logits_mean(q_view, k_view, scale), expected), name


def test_expanded_inputs(device):
    """One key head for all query heads (grouped queries) is a stride of zero."""
    q, k, scale = inputs((2, 4, 20, 20, 32), torch.float32, device)
    k = k[:, :1].expand(2, 4, 20, 32)
    q = q[:1].expand(2, 4, 20, 32)
    expected = ops.attention_logits_mean(q.contiguous(), k.contiguous(), scale)
    assert equal(ops.attention_logits_mean(q, k, scale), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 8, 100, 100, 64), (5, 3, 33, 70, 24)])
def test_threads_and_batch_do_not_change_a_bit(shape, dtype, isa, set_threads):
    q, k, scale = inputs(shape, dtype, "cpu")
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(ops.attention_logits_mean(q, k, scale))
        for split in (1, 2, 5):
            pairs = zip(q.split(split), k.split(split), strict=True)
            parts = [ops.attention_logits_mean(*pair, scale) for pair in pairs]
            results.append([torch.cat(outputs) for outputs in zip(*parts, strict=True)])
    assert all(equal(result, results[0]) for result in results)


@pytest.mark.cuda
def test_batch_does_not_change_a_bit_on_cuda():
    q, k, scale = inputs((7, 8, 100, 100, 64), torch.bfloat16, "cuda")
    pairs = zip(q.split(2), k.split(2), strict=True)
    parts = [ops.attention_logits_mean(*pair, scale) for pair in pairs]
    joined = [torch.cat(outputs) for outputs in zip(*parts, strict=True)]
    assert equal(joined, ops.attention_logits_mean(q, k, scale))


def test_avx2_and_avx512_agree_to_the_bit():
    if "avx512" not in _load.supported_isas():
        pytest.skip("this processor has no avx512")
    arguments = inputs((2, 3, 70, 40, 50), torch.float32, "cpu")
    before = _load.isa()
    results = []
    for level in ("avx2", "avx512"):
        _load.set_isa(level)
        results.append(ops.attention_logits_mean(*arguments))
    _load.set_isa(before)
    assert equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_narrow_number_is_widened_exactly(dtype, isa):
    """The mean over one token is the number itself: subnormals, infinities, NaN and both zeros."""
    q = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 1, -1)
    got = ops.attention_logits_mean(q, q, 1.0).q_mean
    torch.testing.assert_close(got[:, :, None], q.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_in_their_image(value, dtype, device):
    q, k, scale = inputs((3, 2, 40, 40, 33), dtype, device)
    clean = ops.attention_logits_mean(q, k, scale)
    q[1, 1, 35, 32] = value
    got = ops.attention_logits_mean(q, k, scale)
    assert not got.head_scores[1, 1].isfinite()
    assert got.head_scores[1, 0] == clean.head_scores[1, 0]
    assert not got.key_map[1].isfinite().any()
    assert got.query_map[1].isfinite().sum() == 39
    assert equal([t[::2] for t in got], [t[::2] for t in clean])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype, device):
    q = torch.empty(0, 2, 5, 8, dtype=dtype, device=device)
    got = ops.attention_logits_mean(q, q[:, :, :3], 1.0)
    assert [tuple(t.shape) for t in got] == [(0, 2), (0, 3), (0, 5), (0, 2, 8)]
    assert {t.dtype for t in got} == {torch.float32}


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(
        *(st.integers(1, 3), st.integers(1, 5)),
        *(st.integers(1, 70), st.integers(1, 70), st.integers(1, 80)),
    ),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(shape, dtype, seed, assert_as_exact_as):
    torch.manual_seed(seed)
    check(*inputs(shape, dtype, "cpu"), assert_as_exact_as)


Q = torch.zeros(2, 3, 5, 4)
REFUSED = [
    ((Q[0], Q), r"attention_logits_mean: q should be \[B, H, Nq, d\], got \[3, 5, 4\]"),
    ((Q, Q[0]), r"k should be \[B, H, Nk, d\], got \[3, 5, 4\]"),
    ((Q, Q[:1]), r"agree in B, H and d, got \[2, 3, 5, 4\] and \[1, 3, 5, 4\]"),
    ((Q, Q[:, :1]), r"agree in B, H and d, got \[2, 3, 5, 4\] and \[2, 1, 5, 4\]"),
    ((Q, Q[..., :2]), r"agree in B, H and d, got \[2, 3, 5, 4\] and \[2, 3, 5, 2\]"),
    ((Q[:, :, :0], Q), r"H > 0, N > 0 and d > 0, got \[2, 3, 0, 4\] and \[2, 3, 5, 4\]"),
    ((Q, Q[:, :, :0]), r"H > 0, N > 0 and d > 0, got \[2, 3, 5, 4\] and \[2, 3, 0, 4\]"),
    ((Q[:, :0], Q[:, :0]), r"H > 0, N > 0 and d > 0, got \[2, 0, 5, 4\]"),
    ((Q[..., :0], Q[..., :0]), r"H > 0, N > 0 and d > 0, got \[2, 3, 5, 0\]"),
    ((Q.double(), Q.double()), r"q should be float32, bfloat16 or float16, got torch\.float64"),
    ((Q.bfloat16(), Q), r"k should have the dtype of q, torch\.bfloat16, got torch\.float32"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
@pytest.mark.parametrize("kind", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_refuses_by_name(arguments, text, kind):
    q, k = (t.to(kind) for t in arguments)
    with pytest.raises(RuntimeError, match=text):
        ops.attention_logits_mean(q, k, 0.5)


MEMORY = """
import re, torch
from fiqa_fast import ops
def memory(kind):  # bytes; not ru_maxrss, which a child inherits from its parent
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
B, H, N, d = 8, 8, 4096, 64
q, k = torch.randn(B, N, 2, H, d).permute(2, 0, 3, 1, 4)
ops.attention_logits_mean(q[:, :, :64], k[:, :, :64], 0.1)
before = memory("VmRSS")
ops.attention_logits_mean(q, k, 0.1)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_not_of_the_order_of_the_logits(run_python):
    """One head of one image has 67 MB of logits here, and a copy of q would be 67 MB, too."""
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    scratch = 2 * 8 * (4096 // 32) * 8 * 64 * 4  # partial sums, 1/32 of q and k
    assert growth < scratch + 16 * 2**20
