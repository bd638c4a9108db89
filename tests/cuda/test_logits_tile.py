# SPDX-License-Identifier: Apache-2.0
"""attention_logits_stats on the emulator: published numbers, long rows, and what is no number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from emulation.calls import Call
from fiqa_fast import load_model
from operators import attention_logits_stats as operator
from operators.case import DTYPES, double

PARITY = Path(__file__).parents[1] / "data" / "parity"
MOMENTS, CENTRED, SOFTMAX, MEDIAN = 1, 2, 4, 8
OF = {
    MOMENTS: ("head_values", "image_values", "key_map", "query_map"),
    SOFTMAX: ("logsumexp", "entropy"),
    MEDIAN: ("median",),
}


def run(emulator, q, k, scale, *, average=False, stats=15):
    """All results by name, the columns of the values too."""
    shape = (*q.shape[:3], k.shape[2], q.shape[3])
    call = operator.make(shape, q.dtype).call
    tensors = {**call.tensors, "q": q, "k": k}
    matrices = 1 if average else q.shape[1]
    tensors |= {
        name: torch.empty(len(q), matrices, *tensors[name].shape[2:])
        for name in ("head_values", "logsumexp", "entropy")
    }
    asked = tuple(n for bit, names in OF.items() if stats & bit for n in names)
    if stats & CENTRED:
        asked = tuple(dict.fromkeys((*OF[MOMENTS], *asked)))
    tensors = {n: t for n, t in tensors.items() if n in ("q", "k", *asked)}
    numbers = {"scale": scale, "matrices": matrices, "stats": stats}
    got = emulator.run(Call("attention_logits_stats", tensors, asked, numbers))
    if "image_values" in got:
        got |= dict(zip(operator.VALUES, got["image_values"].unbind(-1), strict=True))
    return got


def last_block(name):
    """Queries and keys of a parity model's last block, and their scale, by a pass in float64."""
    config = json.loads((PARITY / "configs.json").read_text())[name]
    model = load_model(PARITY / f"{name}.pt", {"num_heads": config["num_heads"]}).double()
    pixels = torch.from_numpy(np.load(PARITY / "images_rgb_uint8.npy")).permute(0, 3, 1, 2)
    x = model.embed((pixels.float() / 255 - 0.5).div(0.5).double())
    for block in model.blocks[:-1]:
        x = block(x)
    block = model.blocks[-1]
    projected = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))
    q, k, _ = projected.permute(2, 0, 3, 1, 4).detach()
    return q, k, block.attn.scale


@pytest.mark.parametrize("name", ["cvlface_patch8", "arcface_patch9"])
def test_the_published_numbers(name, emulator):
    """Through the tile kernels: within 1e-5, as shared with the rest of the parity tests."""
    expected = np.load(PARITY / f"{name}.npz")
    with torch.no_grad():
        q, k, scale = last_block(name)
    got = run(emulator, q.float(), k.float(), scale)
    average = run(emulator, q.float(), k.float(), scale, average=True)
    unit = expected["logit_std"].min()
    for want, value in (
        ("score", got["mean"]),
        ("max", got["max"]),
        ("min", got["min"]),
        ("std_biased", got["variance"].sqrt()),
        ("std_unbiased", got["unbiased_variance"].sqrt()),
        ("head_scores", got["head_values"][..., 0]),
        ("key_map", got["key_map"]),
        ("query_map", got["query_map"]),
        ("headavg_max", average["max"]),
        ("headavg_std_unbiased", average["unbiased_variance"].sqrt()),
    ):
        error = np.abs(double(value) - expected[want]).max() / np.abs(expected[want]).max()
        assert error < 1e-5, want
    for want, value in (("median", got["median"]), ("headavg_median", average["median"])):
        assert np.abs(double(value) - expected[want]).max() < 1e-5 * unit, want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 3, 4096, 16), (1, 1, 4096, 3, 8)])
def test_long_rows_and_columns(shape, dtype, emulator):
    case = operator.make(shape, dtype, "fused", offset=1.0)
    case.check(emulator.run(case.call))


def test_one_logit(emulator):
    got = run(emulator, torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), -2.0), 0.5)
    for name in ("mean", "max", "min", "median", "logsumexp", "key_map", "query_map"):
        assert got[name].item() == -3.0, name
    for name in ("variance", "row_variance", "centred_variance", "entropy"):
        assert got[name].item() == 0.0, name
    assert got["unbiased_variance"].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [3, 64, 196])
def test_equal_logits_have_no_variance(keys, dtype, emulator):
    q = torch.full((1, 2, 5, 64), 0.7).to(dtype)
    k = torch.full((1, 2, keys, 64), 0.9).to(dtype)
    got = run(emulator, q, k, 1.0)
    assert torch.equal(got["mean"], got["max"])
    assert torch.equal(got["min"], got["max"])
    for name in ("variance", "unbiased_variance", "row_variance"):
        assert got[name].item() == 0.0, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_asked_for_does_not_change_the_rest(dtype, emulator):
    q, k = (torch.randn(2, 2, n, 20).to(dtype) for n in (66, 70))
    everything = run(emulator, q, k, 0.3)
    for stats in range(1, 15):
        for name, value in run(emulator, q, k, 0.3, stats=stats).items():
            if stats & CENTRED or ("values" not in name and name != "centred_variance"):
                assert torch.equal(value, everything[name]), (stats, name)


@pytest.mark.parametrize(
    ("logits", "median"),
    [
        ([0.0, 0.0, 0.0, 1.0], 0.0),
        ([-1.0, -0.0, 0.0, 1.0], 0.0),
        ([-3.0, -2.0, -1.0], -2.0),
        ([1e-45, -1e-45, 3e38, -3e38], -1e-45),
        ([float("inf"), 1.0, float("-inf"), 2.0], 1.0),
        ([5.0] * 7, 5.0),
        ([1.0, 1.0 + 2**-23, 1.0 - 2**-24, 2.0], 1.0),
    ],
)
def test_the_median_is_exact(logits, median, emulator):
    """The lower one of an even number; keys of one channel are the logits of a query of one."""
    k = torch.tensor(logits).view(1, 1, -1, 1)
    got = run(emulator, torch.ones(1, 1, 1, 1), k, 1.0, stats=MEDIAN)
    assert got["median"].item() == torch.tensor(median).item()


def test_the_median_of_many_ties(emulator):
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(-2, 3, (2, 3, 131, 1), generator=generator).float()
    q = torch.randint(-2, 3, (2, 3, 70, 1), generator=generator).float()
    want = (q @ k.mT).flatten(1).median(1).values
    assert torch.equal(run(emulator, q, k, 1.0, stats=MEDIAN)["median"], want)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number(value, emulator):
    """Of one key: as torch has it, but that the entropy of a row with an infinity is NaN."""
    q = torch.randn(2, 1, 5, 4).abs()
    k = torch.randn(2, 1, 70, 4)
    k[1, 0, 69, 2] = value
    got = run(emulator, q, k, 1.0)
    logits = q @ k.mT
    for name, want in (
        ("max", logits.amax((1, 2, 3))),
        ("min", logits.amin((1, 2, 3))),
        ("mean", logits.mean((1, 2, 3))),
        ("median", logits.flatten(1).median(1).values),
        ("logsumexp", logits.logsumexp(3)),
        ("key_map", logits.mean((1, 2))),
        ("query_map", logits.mean((1, 3))),
    ):
        torch.testing.assert_close(got[name], want, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert got["entropy"][1].isnan().all()
    assert got["entropy"][0].isfinite().all()
    for name in operator.VALUES[3:]:
        assert got[name][1].isnan(), name
        assert got[name][0].isfinite(), name
    everywhere = torch.full_like(k, value)
    row = run(emulator, q, everywhere, 1.0, stats=SOFTMAX)
    torch.testing.assert_close(
        row["logsumexp"], (q @ everywhere.mT).logsumexp(3), equal_nan=True, rtol=0, atol=0
    )
    assert row["entropy"].isnan().all()
