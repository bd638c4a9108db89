# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from emulation.calls import Call
from operators.case import Case, double, empty, laid_out, parameter

# (B, K, O): B and O around the 32 x 32 of a tile, K around its 64 inputs and a chunk of 2048.
SHAPES = [
    *((1, 1, 1), (3, 15, 5), (4, 16, 16), (5, 17, 33), (33, 64, 40), (9, 130, 7)),
    *((2, 512, 100), (7, 2047, 3), (6, 2048, 18), (5, 2064, 9), (2, 4500, 31), (65, 68, 65)),
]
LIMITS = [(1, 40), (1, 200), (1, 40)]


def make(shape, dtype, layout="contiguous", seed=0, offset=0.0) -> Case:
    B, K, outputs = shape
    generator = torch.Generator().manual_seed(seed)
    x = offset + torch.randn(B, K, generator=generator)
    weight = torch.randn(outputs, K, generator=generator).to(dtype)
    # Now and then only one of the two has aligned rows.
    x = laid_out(x, "contiguous" if seed % 4 == 2 else layout)
    weight = laid_out(weight, "contiguous" if seed % 4 == 3 else layout)
    bias = parameter(outputs, dtype, seed, generator) if seed % 3 != 1 else None
    expected = double(x) @ double(weight).T
    terms = np.abs(double(x)) @ np.abs(double(weight)).T
    if bias is not None:
        expected = expected + double(bias)
        terms = terms + np.abs(double(bias))
    eager = F.linear(x, weight.float(), None if bias is None else bias.float())
    tensors = {"x": x, "weight": weight, "bias": bias, "out": empty(B, outputs)}
    return Case(
        Call(
            "batch_invariant_linear",
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
            ("out",),
        ),
        {"out": expected},
        {"out": double(eager)},
        {"out": float(terms.max())},
        ("x",),
    )
