# SPDX-License-Identifier: Apache-2.0
"""What stands behind the tokens, where an image is one row: linear layers over all images at once.

Their weights are then read once per batch, not once per image, and that matters: an embedding
head can hold most of a model's weights. A row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from .vit import FaceViT


class RowLinear:
    """A linear layer of float32 rows [B, K] -> [B, O] float32, its weight kept in ``dtype``."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weight = weight.detach().to(device, dtype, copy=True).contiguous()
        self.bias = None if bias is None else bias.detach().to(device, torch.float32, copy=True)

    def __call__(self, rows: Tensor) -> Tensor:
        return ops.batch_invariant_linear(rows, self.weight, self.bias)


class EmbeddingHead:
    """The final norm and the embedding head, in two steps: per token, and per image.

    Each of the head's BatchNorms, an affine map in evaluation mode, is folded into the linear
    layer before it.
    """

    def __init__(self, vit: FaceViT, device: torch.device, dtype: torch.dtype) -> None:
        config, norm = vit.config, vit.norm
        self.tokens = config.num_feature_tokens
        self.norm_weight = norm.weight.detach().to(device, torch.float32, copy=True)
        self.norm_bias = norm.bias.detach().to(device, torch.float32, copy=True)
        self.eps = norm.eps
        first, first_norm, second, second_norm = cast("Any", vit.feature)
        self.layers = [
            _folded(first, first_norm, device, dtype),
            _folded(second, second_norm, device, dtype),
        ]

    def rows(self, x: Tensor) -> Tensor:
        """The stream after the last block [B, N, D] to the head's input, one row per image."""
        normed = torch.layer_norm(
            x[:, -self.tokens :], x.shape[-1:], self.norm_weight, self.norm_bias, self.eps
        )
        return normed.flatten(1)

    def __call__(self, rows: Tensor) -> Tensor:  # -> [B, num_classes]
        for layer in self.layers:
            rows = layer(rows)
        return rows


def batch_norm_as_affine(layer: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """(factor, shift) of an evaluation-mode BatchNorm x -> x factor + shift, [C], in float64."""
    state = {name: t.double().cpu() for name, t in layer.state_dict().items()}
    factor = state["weight"] / (state["running_var"] + layer.eps).sqrt()
    return factor, state["bias"] - state["running_mean"] * factor


def _folded(
    linear: nn.Linear, batch_norm: nn.BatchNorm1d, device: torch.device, dtype: torch.dtype
) -> RowLinear:
    """``linear`` and ``batch_norm`` behind it."""
    factor, shift = batch_norm_as_affine(batch_norm)
    if linear.bias is not None:
        shift = shift + factor * linear.bias.detach().cpu().double()
    # Row by row: in float64 the first layer would be twice its already large size.
    weight = torch.stack(
        [
            (row.detach().cpu().double() * f).float()
            for row, f in zip(linear.weight, factor, strict=True)
        ]
    )
    return RowLinear(weight, shift, device, dtype)
