# SPDX-License-Identifier: Apache-2.0
"""One tensor in many layouts: an operator must read them alike, to the bit."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, stack


def views(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values [..., N, D] at other addresses and strides."""
    N, D = t.shape[-2:]
    yield "transposed", t.mT.contiguous().mT
    yield "first axes swapped", t.transpose(0, 1).contiguous().transpose(0, 1)
    yield "every other row", stack([t, t * 0], -2).flatten(-3, -2)[..., ::2, :]
    yield "every other column", stack([t, t * 0], -1).flatten(-2)[..., ::2]
    wide = t.new_zeros(*t.shape[:-2], N + 1, D + 1)
    wide[..., 1:, 1:] = t
    yield "unaligned", wide[..., 1:, 1:]
