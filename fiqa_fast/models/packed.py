# SPDX-License-Identifier: Apache-2.0
"""Linear layers of a fixed number of rows, their weights laid out once for oneDNN.

torch's plain CPU linear lays the weights out anew at every call. With the layout made once, for
the one shape that an engine uses, and the ReLU6 fused in, a block takes three quarters of the time
(measured in bfloat16 on an AMX machine; a twentieth less in float32).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .patches import PatchProducts
from .vit import FaceViT, Linear, PatchEmbed


class PackedLinear(nn.Module):
    """``Linear`` (and a ReLU6 behind it) for inputs of ``rows`` rows in all but the last dim."""

    def __init__(self, linear: Linear, rows: int, relu6: bool = False) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            input.to(self.dtype), self.weight, self.bias, *self.activation
        )
        return out


class PackedPatchEmbed(PatchProducts):
    """The patch convolution as a packed linear layer, float32.

    Its output is contiguous, as that of the convolution is not, and it takes three quarters of the
    time (measured on an AMX machine, patches of 9 x 9, 512 channels).
    """

    def __init__(self, embed: PatchEmbed, images: int, num_patches: int) -> None:
        super().__init__(embed)
        self.linear = PackedLinear(cast("Linear", self.linear), images * num_patches)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor has packed linear layers in ``dtype``."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(ops._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def pack(vit: FaceViT, images: int) -> None:
    """Replace the linear layers of all blocks, and the patch embedding, for groups of so many
    images."""
    config = vit.config
    for block in vit.blocks:
        for module in block.modules():
            fuse = isinstance(getattr(module, "act", None), nn.ReLU6)
            for name, child in list(module.named_children()):
                if isinstance(child, Linear):
                    packed = PackedLinear(child, images * config.num_tokens, fuse and name == "fc1")
                    setattr(module, name, packed)
            if fuse:
                module.act = nn.Identity()
    if can_pack(torch.float32):
        vit.patch_embed = PackedPatchEmbed(  # type: ignore[assignment]
            vit.patch_embed, images, config.num_patches
        )
