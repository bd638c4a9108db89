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


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    B, N, D = shape
    generator = torch.Generator().manual_seed(seed)
    x = laid_out((offset + torch.randn(shape, generator=generator)).to(dtype), layout)
    weight = parameter(D, dtype, seed, generator) if seed % 3 != 1 else None
    bias = parameter(D, dtype, seed // 2, generator) if seed % 3 != 2 else None
    expected, terms = normalised(double(x), EPS), np.ones(D)
    if weight is not None:
        expected, terms = expected * double(weight), np.abs(double(weight))
    if bias is not None:
        expected, terms = expected + double(bias), terms + np.abs(double(bias))
    g, b = (None if p is None else p.float() for p in (weight, bias))
    tensors = {"x": x, "weight": weight, "bias": bias, "out": empty(B, D)}
    return Case(
        Call(
            "mean_layer_norm",
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
            ("out",),
            {"eps": EPS},
        ),
        {"out": expected.mean(1)},
        {"out": double(F.layer_norm(x.float(), (D,), g, b, EPS).mean(1))},
        # Normalised values are of the order of one.
        {"out": float(terms.max())},
        ("x",),
    )
