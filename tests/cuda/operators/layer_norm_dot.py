# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from emulation.calls import Call
from operators.case import Case, double, empty, laid_out, parameter

# N around the 8 warps of a block and the 32 lanes that add tokens, D around 16 bytes and a warp.
SHAPES = [
    *((1, 1, 1), (2, 3, 15), (1, 31, 16), (3, 32, 17), (2, 33, 8), (2, 65, 24)),
    *((2, 144, 512), (1, 97, 384), (1, 5, 1000), (9, 2, 300)),
]
LIMITS = [(1, 4), (1, 70), (1, 140)]
EPS = 1e-5


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    B, N, D = shape
    generator = torch.Generator().manual_seed(seed)
    x = laid_out((offset + torch.randn(shape, generator=generator)).to(dtype), layout)
    w = torch.randn(N, D, generator=generator)
    w = laid_out(w, layout if layout != "unaligned" else "every other")
    weight = parameter(D, dtype, seed, generator) if seed % 3 != 1 else None
    bias = parameter(D, dtype, seed // 2, generator) if seed % 3 != 2 else None

    values = double(x) - double(x).mean(-1, keepdims=True)
    values = values / np.sqrt((values**2).mean(-1, keepdims=True) + EPS)
    sizes = np.abs(values)
    if weight is not None:
        values, sizes = values * double(weight), sizes * np.abs(double(weight))
    if bias is not None:
        values, sizes = values + double(bias), sizes + np.abs(double(bias))
    g, b = (None if p is None else p.float() for p in (weight, bias))
    eager = (F.layer_norm(x.float(), (D,), g, b, EPS) * w).sum((1, 2))
    tensors = {"x": x, "w": w, "weight": weight, "bias": bias, "out": empty(B)}
    return Case(
        Call(
            "layer_norm_dot",
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
            ("out",),
            {"eps": EPS},
        ),
        {"out": (values * double(w)).sum((1, 2))},
        {"out": double(eager)},
        # Terms cancel over tokens and channels, and where the bias does against the rest.
        {"out": float((sizes * np.abs(double(w))).sum((1, 2)).max())},
        ("x",),
    )
