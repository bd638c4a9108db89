# SPDX-License-Identifier: Apache-2.0
"""The output is torch's, the quality that of the logits, and both come from one call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALE = 0.3


def inputs(device, dtype=torch.float32, B=2, H=3, Nq=17, Nk=40, d=24, e=16):
    generator = torch.Generator().manual_seed(0)
    sizes = ((Nq, d), (Nk, d), (Nk, e))
    return [
        torch.randn(B, H, *size, generator=generator).to(device=device, dtype=dtype)
        for size in sizes
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_quality(dtype, device):
    q, k, v = inputs(device, dtype)
    got = ops.attention_with_quality(q, k, v, SCALE)
    want = reference.attention_with_quality(q, k, v, SCALE)
    assert torch.equal(got.output, F.scaled_dot_product_attention(q, k, v, scale=SCALE))
    assert got.output.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.output.double(), want.output, rtol=0, atol=tolerance)
    for name in ("key_map", "head_scores"):
        value = getattr(got, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(want, name), rtol=0, atol=1e-6)
    assert torch.allclose(got.head_scores.mean(1), got.key_map.mean(1), atol=1e-6)


def test_compiles_whole(device):
    q, k, v = inputs(device)
    compiled = torch.compile(ops.attention_with_quality, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        compiled(q, k, v, SCALE), ops.attention_with_quality(q, k, v, SCALE), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_the_output_has_its_gradient(device):
    q, k, v = (t.requires_grad_() for t in inputs(device))
    ops.attention_with_quality(q, k, v, SCALE).output.sum().backward()
    assert v.grad is not None


@pytest.mark.parametrize(
    "change",
    [lambda v: v[:1], lambda v: v[:, :, 1:], lambda v: v[0], lambda v: v.half()],
    ids=["batch", "tokens", "dimensions", "dtype"],
)
def test_values_that_do_not_belong_to_the_keys_are_refused(change, device):
    q, k, v = inputs(device)
    with pytest.raises(RuntimeError, match=r"^attention_with_quality: v should be .*, got"):
        ops.attention_with_quality(q, k, change(v), SCALE)
