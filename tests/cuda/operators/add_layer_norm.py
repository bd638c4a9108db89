# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from emulation.calls import Call
from operators.case import DTYPES, Case, double, laid_out, parameter
from operators.mean_layer_norm import normalised

# N around the 8 warps of a block, D around 16 bytes and a warp's groups of four.
SHAPES = [
    *((1, 1, 1), (2, 3, 15), (1, 31, 16), (3, 9, 17), (2, 33, 8), (2, 5, 132)),
    *((1, 50, 512), (1, 5, 1000), (9, 2, 300)),
]
LIMITS = [(1, 4), (1, 40), (1, 140)]
EPS = 1e-5


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    """``dtype`` is the residual's; that of the norm goes round with ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    x = laid_out(offset + torch.randn(shape, generator=generator), layout)
    # Another layout than that of x, or the two could be taken for one another.
    other = layout if layout != "unaligned" else "every other"
    residual = laid_out(torch.randn(shape, generator=generator).to(dtype), other)
    D, out = shape[-1], DTYPES[seed % 3]
    weight = parameter(D, dtype, seed, generator) if seed % 4 != 1 else None
    bias = parameter(D, dtype, seed // 2, generator) if seed % 4 != 2 else None
    total = x + residual.float()
    expected = normalised(double(total), EPS)
    terms = np.abs(expected)
    if weight is not None:
        expected, terms = expected * double(weight), terms * np.abs(double(weight))
    if bias is not None:
        expected, terms = expected + double(bias), terms + np.abs(double(bias))
    g, b = (None if p is None else p.float() for p in (weight, bias))
    tensors = {
        "x": x,
        "residual": residual,
        "weight": weight,
        "bias": bias,
        "sum": torch.empty(shape),
        "normed": torch.empty(shape, dtype=out),
    }
    return Case(
        Call(
            "add_layer_norm",
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
            ("sum", "normed"),
            {"eps": EPS},
        ),
        {"sum": double(x) + double(residual), "normed": expected},
        {"sum": double(total), "normed": double(F.layer_norm(total, (D,), g, b, EPS).to(out))},
        {"sum": 0.0, "normed": float(terms.max())},
        ("x", "residual"),
    )
