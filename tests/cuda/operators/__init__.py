# SPDX-License-Identifier: Apache-2.0
"""Each operator's calls with what they should give, for the tests and for the mutation tests.

A module has SHAPES (sizes around the kernels' tiles), LIMITS (of random sizes) and
make(sizes, dtype, layout, seed, offset) -> Case.
"""

import torch

from emulation.calls import Call
from operators import (
    add_layer_norm,
    attention_logits_mean,
    attention_logits_stats,
    batch_invariant_linear,
    layer_norm_dot,
    mean_layer_norm,
)

ALL = {
    module.__name__.rsplit(".", 1)[-1]: module
    for module in (
        add_layer_norm,
        attention_logits_mean,
        attention_logits_stats,
        batch_invariant_linear,
        layer_norm_dot,
        mean_layer_norm,
    )
}
# Small, but with several blocks, chunks and tails.
SMALL = {
    "add_layer_norm": (5, 13, 40),
    "attention_logits_mean": (3, 3, 17, 20, 24),
    "attention_logits_stats": (3, 2, 5, 70, 24),
    "batch_invariant_linear": (35, 2200, 34),
    "layer_norm_dot": (5, 13, 40),
    "mean_layer_norm": (5, 37, 40),
}
LAYER_NORMS = ["layer_norm_dot", "mean_layer_norm"]


def constant_rows(name: str) -> Call:
    """Rows of one large value each, whose mean is not that value: their variance is rounding."""
    shape = (1, 40, 20001)  # long enough for the squares to be rounded
    call = ALL[name].make(shape, torch.float32).call
    generator = torch.Generator().manual_seed(0)
    values = 10 ** (7 + 4 * torch.rand(1, 40, 1, generator=generator))
    call.tensors["x"].copy_(values.expand(shape))
    return call
