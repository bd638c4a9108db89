# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch

from emulation.calls import Call
from operators.case import Case, double, empty, laid_out

# (B, H, Nq, Nk, d): N around the slices of a block and its 8 warps, d around 16 bytes; the last has
# more groups than threads.
SHAPES = [
    *((1, 1, 1, 1, 1), (2, 3, 31, 32, 15), (1, 2, 33, 64, 16), (3, 1, 5, 100, 17)),
    *((2, 8, 98, 98, 64), (1, 16, 45, 44, 32), (2, 2, 65, 3, 72), (1, 1, 4, 4, 2100)),
]
LIMITS = [(1, 3), (1, 4), (1, 40), (1, 40), (1, 80)]
OUTPUTS = ("head_scores", "key_map", "query_map", "q_mean")


def factorised(q, k, scale):  # [B, H, N, d], of numpy or of torch
    H = q.shape[1]
    q_mean, k_mean = q.mean(2), k.mean(2)
    return {
        "head_scores": scale * (q_mean * k_mean).sum(-1),
        "key_map": scale / H * (k * q_mean[:, :, None]).sum((1, 3)),
        "query_map": scale / H * (q * k_mean[:, :, None]).sum((1, 3)),
        "q_mean": q_mean,
    }


def logits_mean(q: np.ndarray, k: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """By the definition: the means of the logits themselves."""
    logits = scale * q @ k.swapaxes(2, 3)  # [B, H, Nq, Nk]
    return {
        "head_scores": logits.mean((2, 3)),
        "key_map": logits.mean((1, 2)),
        "query_map": logits.mean((1, 3)),
        "q_mean": q.mean(2),
    }


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    B, H, Nq, Nk, d = shape
    generator = torch.Generator().manual_seed(seed)
    q = (offset + torch.randn(B, H, Nq, d, generator=generator)).to(dtype)
    k = (0.25 - offset + torch.randn(B, H, Nk, d, generator=generator)).to(dtype)
    # Heads are often beside one another in a token's row: every other case has [B, N, H, d].
    if seed % 2:
        q, k = (laid_out(t.transpose(1, 2), layout).transpose(1, 2) for t in (q, k))
    else:
        # Now and then k lies otherwise than q.
        q, k = laid_out(q, layout), laid_out(k, "fused" if seed % 4 == 2 else layout)
    scale = d**-0.5
    terms = factorised(np.abs(double(q)), np.abs(double(k)), scale)
    eager = factorised(q.float(), k.float(), scale)
    tensors = {"q": q, "k": k, "head_scores": empty(B, H), "key_map": empty(B, Nk)}
    tensors |= {"query_map": empty(B, Nq), "q_mean": empty(B, H, d)}
    return Case(
        Call("attention_logits_mean", tensors, OUTPUTS, {"scale": scale}),
        logits_mean(double(q), double(k), scale),
        {name: double(value) for name, value in eager.items()},
        {name: float(value.max()) for name, value in terms.items()},
        ("q", "k"),
    )
