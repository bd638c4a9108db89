# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from emulation.calls import Call
from operators.case import Case, double, empty, laid_out

# (B, H, Nq, Nk, d): N around the 64 queries and keys of a tile and a warp's 16, d around 16 bytes
# and the 128 of a slab (32 channels of float32, 64 of the others).
SHAPES = [
    *((1, 1, 1, 2, 1), (2, 3, 31, 33, 15), (1, 2, 16, 64, 16), (2, 2, 5, 100, 17)),
    *((1, 2, 65, 65, 64), (1, 1, 130, 20, 32), (1, 1, 64, 129, 128), (2, 2, 40, 70, 72)),
    *((1, 2, 3, 66, 72), (1, 4, 3, 257, 40), (1, 3, 196, 196, 64)),
]
LIMITS = [(1, 2), (1, 3), (1, 80), (1, 140), (1, 128)]
OUTPUTS = ("head_values", "image_values", "key_map", "query_map", "logsumexp", "entropy", "median")
VALUES = ("mean", "max", "min", "variance", "unbiased_variance", "row_variance", "centred_variance")


def spread(x, axes, correction=0):
    """Variance about the mean, for numpy and torch alike."""
    count = int(np.prod([x.shape[axis] for axis in axes]))
    centred = x - x.mean(axes, keepdims=True)
    return (centred * centred).sum(axes) / (count - correction if count > correction else np.nan)


def values_of(logits):  # [B, G, Nq, Nk] -> [B, 7]
    numpy = isinstance(logits, np.ndarray)
    extreme = (logits.max, logits.min) if numpy else (logits.amax, logits.amin)
    centred = logits - logits.mean(3, keepdims=True) - logits.mean(2, keepdims=True)
    centred = centred + logits.mean((2, 3), keepdims=True)
    columns = [
        logits.mean((1, 2, 3)),
        *(of((1, 2, 3)) for of in extreme),
        spread(logits, (1, 2, 3)),
        spread(logits, (1, 2, 3), 1),
        spread(logits, (3,)).mean((1, 2)),
        (centred * centred).mean((1, 2, 3)),
    ]
    return (np if numpy else torch).stack(columns, -1)


def stats_of(logits):  # [B, H', Nq, Nk], of numpy or of torch
    numpy = isinstance(logits, np.ndarray)
    library = np if numpy else torch
    top = logits.max(3, keepdims=True) if numpy else logits.amax(3, keepdims=True)
    weights = library.exp(logits - top)
    sums = weights.sum(3, keepdims=True)
    shares = weights / sums
    size = logits[0].size if numpy else logits[0].numel()
    flat = np.sort(np.asarray(logits).reshape(len(logits), -1), 1)[:, (size - 1) // 2]
    B, matrices = logits.shape[:2]
    heads = values_of(logits.reshape(B * matrices, 1, *logits.shape[2:]))
    return {
        "head_values": heads.reshape(B, matrices, len(VALUES)),
        "image_values": values_of(logits),
        "key_map": logits.mean((1, 2)),
        "query_map": logits.mean((1, 3)),
        "logsumexp": (top + library.log(sums))[..., 0],
        "entropy": -(shares * (logits - top - library.log(sums))).sum(3),
        "median": flat,
    }


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    """Every third case averages the heads first."""
    B, H, Nq, Nk, d = shape
    generator = torch.Generator().manual_seed(seed)
    q = (offset + torch.randn(B, H, Nq, d, generator=generator)).to(dtype)
    k = (0.25 - offset + torch.randn(B, H, Nk, d, generator=generator)).to(dtype)
    if seed % 2:  # heads beside one another in a token's row: [B, N, H, d]
        q, k = (laid_out(t.transpose(1, 2), layout).transpose(1, 2) for t in (q, k))
    else:
        q, k = laid_out(q, layout), laid_out(k, "fused" if seed % 4 == 2 else layout)
    return case_of(q, k, 1 if seed % 3 == 2 else H)


def equal_logits() -> Case:
    """Whose variances have to be zero, whatever eager's are; means of four queries are exact."""
    # Sixteen of this number, added one by one, are not sixteen times the number.
    q, k = torch.ones(1, 2, 4, 1), torch.full((1, 2, 196, 1), 0.967536211013794)
    case = case_of(q, k, 2)
    exact = {name: case.expected[name] for name in ("head_values", "image_values")}
    return replace(case, eager=case.eager | exact)


def case_of(q: torch.Tensor, k: torch.Tensor, matrices: int) -> Case:
    (B, H, Nq, d), Nk = q.shape, k.shape[2]
    scale = d**-0.5

    def logits_of(q, k):
        logits = scale * (q @ k.swapaxes(2, 3))
        return logits.mean(1, keepdims=True) if matrices < H else logits

    logits = logits_of(double(q), double(k))
    eager = stats_of(logits_of(q.float(), k.float()))
    shapes = {"head_values": (B, matrices, 7), "image_values": (B, 7)}
    shapes |= {"key_map": (B, Nk), "query_map": (B, Nq), "median": (B,)}
    shapes |= dict.fromkeys(("logsumexp", "entropy"), (B, matrices, Nq))
    tensors = {"q": q, "k": k} | {name: empty(*shapes[name]) for name in OUTPUTS}
    # What a logit's terms add up to bounds its rounding, which grows with their number; that of a
    # variance, times its spread.
    size = float(logits_of(np.abs(double(q)), np.abs(double(k))).max())
    size *= max(1.0, d * H / matrices / 64)
    far = float(np.abs(logits - logits.mean()).max())
    columns = [size, size, size, *[2 * size * far] * 4]
    terms = dict.fromkeys(OUTPUTS, size)
    return Case(
        Call(
            "attention_logits_stats",
            tensors,
            OUTPUTS,
            {"scale": scale, "matrices": matrices, "stats": 15},
        ),
        stats_of(logits),
        {name: np.asarray(value, dtype=np.float64) for name, value in eager.items()},
        terms | {"head_values": columns, "image_values": columns},
        ("q", "k"),
    )
