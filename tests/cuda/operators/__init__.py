# SPDX-License-Identifier: Apache-2.0
"""Each operator's calls with what they should give, for the tests and for the mutation tests.

A module has SHAPES (sizes around the kernels' tiles), LIMITS (of random sizes) and
make(sizes, dtype, layout, seed, offset) -> Case.
"""

from operators import (
    attention_logits_mean,
    batch_invariant_linear,
    layer_norm_dot,
    mean_layer_norm,
)

ALL = {
    module.__name__.rsplit(".", 1)[-1]: module
    for module in (attention_logits_mean, batch_invariant_linear, layer_norm_dot, mean_layer_norm)
}
