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
STATS = ("moments", "centered_variance", "softmax", "median")
# (B, H, Nq, Nk, d): Nq around the 16 lanes of a vector and the chunks of queries, Nk around the 4
# keys taken together and the 64 of a tile.
SHAPES = [
    *((1, 1, 1, 1, 1), (2, 3, 31, 32, 15), (1, 2, 65, 64, 16), (3, 1, 5, 100, 17)),
    *((2, 8, 196, 196, 64), (1, 16, 145, 144, 32), (2, 2, 67, 3, 72), (1, 1, 4, 65, 128)),
    (1, 2, 1, 300, 8),
]


def inputs(shape, dtype, device):
    B, H, Nq, Nk, d = shape
    q = torch.randn(B, H, Nq, d, device=device).to(dtype)
    k = (torch.randn(B, H, Nk, d, device=device) + 0.25).to(dtype)
    return q, k, d**-0.5


def named(stats):
    """Every tensor of the result by its name."""
    for name, value in stats._asdict().items():
        if isinstance(value, tuple):
            for part, tensor in value._asdict().items():
                if tensor is not None:
                    yield f"{name}.{part}", tensor
        elif value is not None:
            yield name, value


def equal(a, b):
    """To the bit; NaN equals NaN."""
    pairs = list(zip(named(a), named(b), strict=True))
    return all(
        n == m and x.shape == y.shape and ((x == y) | (x.isnan() & y.isnan())).all()
        for (n, x), (m, y) in pairs
    )


def check(q, k, scale, heads, assert_as_exact_as):
    got = ops.attention_logits_stats(q, k, scale, STATS, heads)
    expected = dict(named(reference.attention_logits_stats(q, k, scale, STATS, heads)))
    eager = dict(named(reference.attention_logits_stats(q, k, scale, STATS, heads, torch.float32)))
    # A logit is a sum that cancels, and so is the mean of logits: their unit is the sum of the
    # terms without signs. Variances and entropies have their own, and what the rounding of n
    # logits moves them by chance, which matters where there are few.
    terms = reference.attention_logits_stats(q.abs(), k.abs(), scale, ("moments",), heads).image.max
    variance = expected["image.variance"].max()

    def by_chance(n):
        return 4 * terms.max() * (variance / n).sqrt()

    for name, tensor in named(got):
        unit = terms
        if name.endswith("variance"):
            unit = variance + by_chance(q.shape[2] * k.shape[2])
        elif name == "entropy":
            unit = expected[name].max() + by_chance(k.shape[2])
        if name.endswith("unbiased_variance") and expected[name].isnan().all():
            assert tensor.isnan().all()  # of a single logit
        else:
            assert_as_exact_as(tensor.contiguous(), eager[name], expected[name], unit)


@pytest.mark.parametrize("heads", ["all", "average"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, heads, device, assert_as_exact_as):
    check(*inputs(shape, dtype, device), heads, assert_as_exact_as)


@pytest.mark.parametrize("heads", ["all", "average"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_isa_matches_reference(shape, dtype, heads, isa, assert_as_exact_as):
    check(*inputs(shape, dtype, "cpu"), heads, assert_as_exact_as)


def test_large_logits_keep_their_variances(device):
    """The variances are 1 to 1e-3 of the squared mean's rounding: no difference of squares."""
    q, k, scale = inputs((2, 2, 150, 70, 64), torch.float32, device)
    k[..., 0] += 100 * q[..., :1, 0].sign()
    q[..., 0] = 40  # adds 500 to every logit, or takes 500 from it
    got = ops.attention_logits_stats(q, k, scale, STATS)
    expected = reference.attention_logits_stats(q, k, scale, STATS)
    assert expected.image.mean.abs().max() > 100
    for name in ("variance", "row_variance", "centered_variance"):
        torch.testing.assert_close(
            getattr(got.head, name).double(), getattr(expected.head, name), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("keys", [3, 64, 196])
def test_equal_logits_have_no_variance(keys, device):
    q = torch.full((1, 2, 70, 64), 0.7, device=device)
    k = torch.full((1, 2, keys, 64), 0.9, device=device)
    image = ops.attention_logits_stats(q, k, 1.0).image
    assert image.mean == image.max == image.min
    assert image.variance == image.unbiased_variance == image.row_variance == 0.0


def test_agrees_with_attention_logits_mean(device):
    """Two ways to the same means."""
    q, k, scale = inputs((4, 8, 100, 90, 64), torch.float32, device)
    got = ops.attention_logits_stats(q, k, scale)
    means = ops.attention_logits_mean(q, k, scale)
    torch.testing.assert_close(got.head.mean, means.head_scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.key_map, means.key_map, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.query_map, means.query_map, rtol=1e-4, atol=1e-6)


def exact_logits(B, H, Nq, Nk, device):
    """q and k whose logits float32 holds exactly, many of them equal, of both signs."""
    q = torch.randint(-9, 10, (B, H, Nq, 8), device=device).float()
    k = torch.randint(-9, 10, (B, H, Nk, 8), device=device).float()
    return q, k, 0.125


@pytest.mark.parametrize("sizes", [(3, 2, 5, 7), (2, 3, 70, 40), (1, 1, 1, 1), (1, 2, 1, 1)])
def test_median_is_torchs(sizes, device):
    """Of an odd and of an even number of logits, the lower of the two in the middle."""
    q, k, scale = exact_logits(*sizes, device)
    got = ops.attention_logits_stats(q, k, scale, ("median",)).median
    logits = scale * q @ k.transpose(2, 3)
    assert torch.equal(got, logits.flatten(1).median(1).values)


@pytest.mark.parametrize("exponent", [-40, -20, 0, 20, 37])
def test_median_finds_all_digits(exponent, isa):
    """d = 1 makes every logit one rounded product: torch's float32 logits to the bit."""
    q = torch.randn(3, 2, 71, 1) * 10.0**exponent + 10.0**exponent
    k = torch.randn(3, 2, 50, 1)
    got = ops.attention_logits_stats(q, k, 1.0, ("median",)).median
    assert torch.equal(got, (q @ k.transpose(2, 3)).flatten(1).median(1).values)


def test_head_averaged_logits_are_one_matrix(device):
    """Heads that cancel leave nothing."""
    q, k, scale = exact_logits(2, 1, 20, 30, device)
    q, k = torch.cat([q, -q], 1), torch.cat([k, k], 1)
    got = ops.attention_logits_stats(q, k, scale, STATS, "average")
    assert got.head.mean.shape == (2, 1)
    for name, tensor in named(got):
        if name not in ("logsumexp", "entropy"):
            assert (tensor == 0).all(), name
    uniform = torch.full((2, 1, 20), 30.0, device=device).log()
    torch.testing.assert_close(got.logsumexp, uniform)
    torch.testing.assert_close(got.entropy, uniform)


def test_one_head_is_a_slice(device):
    q, k, scale = inputs((2, 4, 50, 60, 32), torch.float32, device)
    every = ops.attention_logits_stats(q, k, scale, STATS)
    one = ops.attention_logits_stats(q[:, 2:3], k[:, 2:3], scale, STATS)
    for name, tensor in one.head._asdict().items():
        assert torch.equal(tensor[:, 0], getattr(every.head, name)[:, 2]), name
    assert torch.equal(one.entropy[:, 0], every.entropy[:, 2])


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_softmax_of_flat_and_of_steep_rows(scale, device, assert_as_exact_as):
    q, k, _ = inputs((2, 3, 40, 50, 16), torch.float32, device)
    check(q, k, scale, "all", assert_as_exact_as)


def subsets():
    for bits in range(1, 16):
        yield tuple(name for i, name in enumerate(STATS) if bits >> i & 1)


@pytest.mark.parametrize("stats", subsets())
def test_what_else_is_asked_for_does_not_change_a_bit(stats, device):
    q, k, scale = inputs((2, 3, 70, 65, 16), torch.bfloat16, device)
    every = dict(named(ops.attention_logits_stats(q, k, scale, STATS)))
    got = ops.attention_logits_stats(q, k, scale, stats)
    present = dict(named(got))
    assert ("median" in present) == ("median" in stats)
    assert ("entropy" in present) == ("logsumexp" in present) == ("softmax" in stats)
    assert ("head.mean" in present) == bool({"moments", "centered_variance"} & set(stats))
    assert ("image.centered_variance" in present) == ("centered_variance" in stats)
    assert all(torch.equal(tensor, every[name]) for name, tensor in present.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 8, 37, 37, 64), (3, 3, 65, 65, 15), (1, 2, 4, 4, 1)])
def test_layout_does_not_change_a_bit(shape, dtype, device):
    q, k, scale = inputs(shape, dtype, device)
    for heads in ("all", "average"):
        expected = ops.attention_logits_stats(q, k, scale, STATS, heads)
        for name, q_view, k_view in attention_views(q, k):
            got = ops.attention_logits_stats(q_view, k_view, scale, STATS, heads)
            assert equal(got, expected), name


def test_expanded_inputs(device):
    """One key head for all query heads (grouped queries) is a stride of zero."""
    q, k, scale = inputs((2, 4, 20, 20, 32), torch.float32, device)
    k = k[:, :1].expand(2, 4, 20, 32)
    q = q[:1].expand(2, 4, 20, 32)
    expected = ops.attention_logits_stats(q.contiguous(), k.contiguous(), scale, STATS)
    assert equal(ops.attention_logits_stats(q, k, scale, STATS), expected)


def joined(parts):
    named_parts = [dict(named(part)) for part in parts]
    return {name: torch.cat([part[name] for part in named_parts]) for name in named_parts[0]}


def by_image(q, k, scale, heads, split):
    pairs = zip(q.split(split), k.split(split), strict=True)
    return joined([ops.attention_logits_stats(*pair, scale, STATS, heads) for pair in pairs])


@pytest.mark.parametrize("heads", ["all", "average"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 8, 100, 100, 64), (5, 3, 33, 150, 24)])
def test_threads_and_batch_do_not_change_a_bit(shape, dtype, heads, isa, set_threads):
    q, k, scale = inputs(shape, dtype, "cpu")
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results += [by_image(q, k, scale, heads, split) for split in (1, 2, 5, len(q))]
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@pytest.mark.cuda
@pytest.mark.parametrize("heads", ["all", "average"])
def test_batch_does_not_change_a_bit_on_cuda(heads):
    q, k, scale = inputs((7, 8, 100, 100, 64), torch.bfloat16, "cuda")
    whole, parts = (by_image(q, k, scale, heads, split) for split in (7, 2))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_avx2_and_avx512_agree_to_the_bit():
    if "avx512" not in _load.supported_isas():
        pytest.skip("this processor has no avx512")
    arguments = inputs((2, 3, 70, 40, 50), torch.float32, "cpu")
    before = _load.isa()
    results = []
    for level in ("avx2", "avx512"):
        _load.set_isa(level)
        results.append(ops.attention_logits_stats(*arguments, STATS))
    _load.set_isa(before)
    assert equal(*results)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", ["all", "average"])
def test_nan_and_infinity_stay_in_their_image(value, dtype, heads, device):
    """One element of one query: a row of NaN, or of infinities of both signs."""
    q, k, scale = inputs((3, 2, 70, 40, 33), dtype, device)
    clean = dict(named(ops.attention_logits_stats(q, k, scale, STATS, heads)))
    q[1, 1, 65, 32] = value
    got = ops.attention_logits_stats(q, k, scale, STATS, heads)
    expected = dict(named(reference.attention_logits_stats(q, k, scale, STATS, heads)))
    for name, tensor in named(got):
        torch.testing.assert_close(
            tensor.double(), expected[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name
        )
        assert torch.equal(tensor[::2], clean[name][::2]), name


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("values", [[NAN], [INF], [-INF], [INF, NAN], [NAN, -INF], [INF, -INF]])
def test_keys_of_nan_and_infinity(values, device):
    """In every row, beside finite ones."""
    q, k = torch.ones(2, 1, 20, 1, device=device), torch.randn(2, 1, 30, 1, device=device)
    k[1, 0, 7 : 7 + len(values), 0] = torch.tensor(values, device=device)
    got = ops.attention_logits_stats(q, k, 1.0, STATS)
    expected = dict(named(reference.attention_logits_stats(q, k, 1.0, STATS)))
    for name, tensor in named(got):
        torch.testing.assert_close(tensor.double(), expected[name], equal_nan=True, msg=name)
    assert got.entropy[1].isnan().all()
    assert got.entropy[0].isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_a_row_of_one_infinity(value, device):
    q, k = torch.full((1, 1, 3, 1), value, device=device), torch.ones(1, 1, 5, 1, device=device)
    got = ops.attention_logits_stats(q, k, 1.0, STATS)
    assert (got.logsumexp == value).all()
    assert got.entropy.isnan().all()
    for tensor in (got.median, got.image.mean, got.image.max, got.image.min):
        assert tensor.item() == value
    assert got.image.variance.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype, device):
    q = torch.empty(0, 2, 5, 8, dtype=dtype, device=device)
    got = dict(named(ops.attention_logits_stats(q, q[:, :, :3], 1.0, STATS)))
    shapes = {"key_map": (0, 3), "query_map": (0, 5), "median": (0,)}
    shapes |= {"logsumexp": (0, 2, 5), "entropy": (0, 2, 5)}
    shapes |= {f"head.{name}": (0, 2) for name in ops.LogitsValues._fields}
    shapes |= {f"image.{name}": (0,) for name in ops.LogitsValues._fields}
    assert {name: tuple(t.shape) for name, t in got.items()} == shapes
    assert {t.dtype for t in got.values()} == {torch.float32}


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(
        *(st.integers(1, 3), st.integers(1, 5)),
        *(st.integers(1, 140), st.integers(1, 140), st.integers(1, 128)),
    ),
    dtype=st.sampled_from(DTYPES),
    heads=st.sampled_from(["all", "average"]),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(shape, dtype, heads, seed, assert_as_exact_as):
    torch.manual_seed(seed)
    check(*inputs(shape, dtype, "cpu"), heads, assert_as_exact_as)


Q = torch.zeros(2, 3, 5, 4)
WIDE = torch.zeros(1, 1, 2, 160)
REFUSED = [
    ((Q[0], Q), r"^attention_logits_stats: q should be \[B, H, Nq, d\], got \[3, 5, 4\]"),
    ((Q, Q[0]), r"k should be \[B, H, Nk, d\], got \[3, 5, 4\]"),
    ((Q, Q[..., :2]), r"agree in B, H and d, got \[2, 3, 5, 4\] and \[2, 3, 5, 2\]"),
    ((Q, Q[:, :, :0]), r"H > 0, N > 0 and d > 0, got \[2, 3, 5, 4\] and \[2, 3, 0, 4\]"),
    ((Q.double(), Q.double()), r"q should be float32, bfloat16 or float16, got torch\.float64"),
    ((Q.bfloat16(), Q), r"k should have the dtype of q, torch\.bfloat16, got torch\.float32"),
    ((WIDE, WIDE), r"^attention_logits_stats: head_dim should be at most 128, got 160"),
]
KINDS = ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_refuses_by_name(arguments, text, kind):
    q, k = (t.to(kind) for t in arguments)
    with pytest.raises(RuntimeError, match=text):
        ops.attention_logits_stats(q, k, 0.5)


@pytest.mark.parametrize("stats", [-1, 0, 16, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_refuses_unknown_bits(stats, kind):
    q = Q.to(kind)
    text = (
        r"^attention_logits_stats: stats should be a sum of 1 \(moments\), 2 \(centered_variance\),"
        rf" 4 \(softmax\) and 8 \(median\), got {stats}"
    )
    with pytest.raises(RuntimeError, match=text):
        torch.ops.fiqa_fast.attention_logits_stats(q, q, 0.5, stats, False)


@pytest.mark.parametrize("stats", ["median", (), ("mean",), ("moments", "mode")])
def test_refuses_unknown_names(stats):
    text = "stats should be a tuple of one or more of moments, centered_variance, softmax, median"
    with pytest.raises(ValueError, match=text):
        ops.attention_logits_stats(Q, Q, 0.5, stats)


def test_refuses_unknown_heads():
    with pytest.raises(ValueError, match='heads should be "all" or "average", got 0'):
        ops.attention_logits_stats(Q, Q, 0.5, heads=0)


MEMORY = """
import re, torch
from fiqa_fast import ops
STATS = ("moments", "centered_variance", "softmax", "median")
def memory(kind):  # bytes; not ru_maxrss, which a child inherits from its parent
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
B, H, N, d = 8, 8, 2048, 64
q, k = torch.randn(B, N, 2, H, d).permute(2, 0, 3, 1, 4)
ops.attention_logits_stats(q[:, :, :64], k[:, :, :64], 0.1, STATS)
before = memory("VmRSS")
ops.attention_logits_stats(q, k, 0.1, STATS)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_not_of_the_order_of_the_logits(run_python):
    """One head of one image has 17 MB of logits here, all of them 1.1 GB."""
    done = run_python(MEMORY)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 2**20
