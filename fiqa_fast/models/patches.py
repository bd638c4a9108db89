# SPDX-License-Identifier: Apache-2.0
"""The patch convolution as one matrix product.

On a GPU, cuDNN may choose a convolution's kernel by timing several
(``torch.backends.cudnn.benchmark``), and with it the last bits. A product has no such choice.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .vit import Linear, PatchEmbed


class PatchProducts(nn.Module):
    """:class:`PatchEmbed`'s convolution as a linear layer over patches, float32."""

    linear: nn.Module

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        weight = embed.proj.weight.detach().flatten(1)  # [D, 3 P^2]
        linear = Linear(weight.shape[1], weight.shape[0])
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = cast("nn.Parameter", embed.proj.bias)
        self.linear = linear
        self.side = embed.proj.kernel_size[0]

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, S, S] -> [B, N, D]
        count = images.shape[-1] // self.side
        used = count * self.side  # the convolution drops the remainder, too
        patches = images[:, :, :used, :used].unflatten(3, (count, -1)).unflatten(2, (count, -1))
        tokens: Tensor = self.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        return tokens
