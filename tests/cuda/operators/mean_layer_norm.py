# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from emulation.calls import Call
from operators.case import Case, double, empty, laid_out, parameter

# N around the 32 tokens of a chunk, D around 16 bytes, a warp and the 256 threads' groups.
SHAPES = [
    *((1, 1, 1), (2, 3, 15), (1, 31, 16), (3, 32, 17), (2, 33, 8), (2, 65, 24)),
    *((2, 196, 512), (1, 97, 384), (1, 5, 1000), (1, 2, 4100), (1, 2, 2304)),
]
LIMITS = [(1, 4), (1, 70), (1, 140)]
EPS = 1e-5


def normalised(x: np.ndarray, eps: float) -> np.ndarray:  # [B, N, D]
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


# What a seed's case lacks, of those that may be absent.
LACKS = {2: ("residual", "u"), 4: ("u",), 7: ("residual", "u"), 9: ("residual",)}


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    """``dtype`` is the residual's; x has it, too, or is float32."""
    B, N, D = shape
    generator = torch.Generator().manual_seed(seed)
    lacks = LACKS.get(seed % 10, ())
    narrow = seed % 2 or "residual" in lacks
    x = (offset + torch.randn(shape, generator=generator)).to(dtype if narrow else torch.float32)
    # Other layouts than that of x, or they could be taken for one another.
    other = layout if layout != "unaligned" else "every other"
    # Now and then only one of the two has aligned rows.
    x = laid_out(x, "contiguous" if seed % 10 == 8 else layout)
    residual = laid_out(
        torch.randn(shape, generator=generator).to(dtype), "contiguous" if seed % 10 == 1 else other
    )
    u = laid_out(torch.randn(B, D, generator=generator), other)
    if seed % 10 == 5:  # one direction for all images
        u = u[:1].expand(B, D)
    weight = parameter(D, dtype, seed, generator) if seed % 3 != 1 else None
    bias = parameter(D, dtype, seed // 2, generator) if seed % 3 != 2 else None
    z = x.float() if "residual" in lacks else x.float() + residual.float()
    expected, terms = normalised(double(z), EPS), np.ones(D)
    sizes = np.abs(expected)
    if weight is not None:
        expected, terms = expected * double(weight), np.abs(double(weight))
        sizes = sizes * terms
    if bias is not None:
        expected, terms = expected + double(bias), terms + np.abs(double(bias))
        sizes = sizes + np.abs(double(bias))
    g, b = (None if p is None else p.float() for p in (weight, bias))
    eager = F.layer_norm(z, (D,), g, b, EPS)
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    tensors |= {"u": u, "mean": empty(B, D), "map": empty(B, N)}
    lacks = (*lacks, "map") if "u" in lacks else lacks
    present = {
        name: tensor for name, tensor in tensors.items() if tensor is not None and name not in lacks
    }
    direction = double(u)[:, None]
    values = {
        "mean": expected.mean(1),
        "map": (expected * direction).sum(2),
    }
    by_torch = {"mean": double(eager.mean(1)), "map": double((eager @ u[..., None])[..., 0])}
    # Normalised values are of the order of one; their products with u cancel over channels.
    limits = {"mean": float(terms.max()), "map": float((sizes * np.abs(direction)).sum(2).max())}
    outputs = tuple(name for name in values if name in present)
    return Case(
        Call("mean_layer_norm", present, outputs, {"eps": EPS}),
        *({name: table[name] for name in outputs} for table in (values, by_torch, limits)),
        tuple(name for name in ("x", "residual", "u") if name in present),
    )
