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


def attention_views(q: Tensor, k: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The same q and k [B, H, N, d] as views of what projections produce, and worse."""
    B, H, N, d = q.shape
    qkv = stack([q, k, k], 0).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, d]
    yield "fused [B, N, 3, H, d]", *qkv.permute(2, 0, 3, 1, 4)[:2]
    qkv = stack([q, k, k], 0).permute(1, 3, 2, 0, 4).contiguous()  # [B, N, H, 3, d]
    yield "fused [B, N, H, 3, d]", *qkv.permute(3, 0, 2, 1, 4)[:2]
    separate = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k)]
    yield "[B, N, H, d]", *separate
    yield "one of each", separate[0], k
    yield "channels apart", *(t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k))
    yield "last stride 2", *(stack([t, t * 0], 4).flatten(3)[..., ::2] for t in (q, k))
    unaligned = [t.new_zeros(t.numel() + 1)[1:].view_as(t).copy_(t) for t in (q, k)]
    yield "unaligned", *unaligned
