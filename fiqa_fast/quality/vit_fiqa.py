# SPDX-License-Identifier: Apache-2.0
"""ViT-FIQA (arXiv 2508.13957) at the last block, and EX-FIQA (arXiv 2604.22842) at any.

After a block: final norm, then the quality head. In evaluation mode every part of the head behind
the norm is affine (Linear, BN, Linear, BN, BN, Linear; for the T variant BN, Linear on the quality
token), so it folds into one vector per token:

    score = sum_n LN(x)_n . w_n + c

which reads the tokens once and costs N D per exit. All of it is float32.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models.casting import cast_linear, drop_key_biases
from ..models.vit import Block, FaceViT, Linear
from .fusion import exit_weights
from .method import Values

OUTPUTS = ("score", "exit_scores")


class FoldedHead:
    """Final norm and quality head as one dot product, folded in float64."""

    def __init__(self, vit: FaceViT, device: torch.device) -> None:
        config = vit.config
        token = config.quality_head == "token"
        weight, self.constant = _fold([*([] if token else vit.feature), *vit.head_qs])
        self.tokens = slice(0, 1) if token else slice(None)
        self.weight = weight.view(-1, config.embed_dim).to(device, torch.float32)  # [N, D]
        self.norm_weight = vit.norm.weight.detach().to(device, torch.float32, copy=True)
        self.norm_bias = vit.norm.bias.detach().to(device, torch.float32, copy=True)
        self.eps = vit.norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """Stream after a block [B, N, D], or its token 0 alone for the T variant, to scores [B]."""
        tokens = x[:, self.tokens]
        dot = ops.layer_norm_dot(tokens, self.norm_weight, self.norm_bias, self.eps, self.weight)
        return dot + self.constant


def _fold(layers: list[nn.Module]) -> tuple[Tensor, float]:
    """A chain of Linear and BatchNorm layers with one output as x -> x . w + c, in float64."""
    row, constant = torch.ones(1, dtype=torch.float64), 0.0
    for layer in reversed(layers):
        if isinstance(layer, Linear):
            # In parts: the first layer's weights are most of the model.
            parts = layer.weight.detach().cpu().split(4096, dim=1)
            row = torch.cat([row @ part.double() for part in parts])
        elif isinstance(layer, nn.BatchNorm1d):
            state = {name: t.double().cpu() for name, t in layer.state_dict().items()}
            factor = state["weight"] / (state["running_var"] + layer.eps).sqrt()
            constant += (row @ (state["bias"] - state["running_mean"] * factor)).item()
            row = row * factor
        else:
            raise TypeError(f"not an affine layer: {type(layer).__name__}")
    return row, constant


class TokenBlock:
    """A block computed for token 0 alone: all keys and values, but one query and one MLP row."""

    def __init__(self, block: Block, device: torch.device, dtype: torch.dtype) -> None:
        block = copy.deepcopy(block).to(device, torch.float32)
        drop_key_biases(block)
        cast_linear(block, dtype)
        self.block = block
        dim = block.attn.qkv.in_features
        weight, bias = block.attn.qkv.weight, dict(block.attn.qkv.named_parameters()).get("bias")
        self.query = (weight[:dim], None if bias is None else bias[:dim])
        self.key_value = (weight[dim:], None if bias is None else bias[dim:])

    def __call__(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, 1, D]
        block, attention = self.block, self.block.attn
        y = block.norm1(x).to(self.query[0].dtype)
        q = F.linear(y[:, :1], *self.query).unflatten(-1, (attention.num_heads, -1))
        kv = F.linear(y, *self.key_value).unflatten(-1, (2, attention.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, scale=attention.scale)
        token = x[:, :1] + attention.proj(out.transpose(1, 2).flatten(2))
        result: Tensor = token + block.mlp(block.norm2(token))
        return result


class VitFiqa:
    """The quality head after block ``exit``, or fused over the exits 1..``exit``.

    Exit l is seen at stage l. For the T variant, where nobody needs the other tokens after the
    last exit, that block is computed for the quality token alone, from stage l - 1.
    """

    def __init__(
        self,
        vit: FaceViT,
        outputs: tuple[str, ...],
        *,
        exit: int | None = None,
        fusion: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        depth, device = vit.config.depth, torch.device(device)
        self.outputs, self.depth = outputs, depth
        self.fusion_weights = exit_weights(depth if exit is None else exit, fusion)
        self.head = FoldedHead(vit, device)
        exits = set(self.fusion_weights)
        if "exit_scores" in outputs:
            exits = set(range(1, depth + 1))
        self.last = max(exits)
        self.token_block: TokenBlock | None = None
        if vit.config.quality_head == "token" and "embedding" not in outputs:
            self.token_block = TokenBlock(vit.blocks[self.last - 1], device, dtype)
            exits = (exits - {self.last}) | {self.last - 1}
        self.stages = frozenset(exits)

    def observe(self, stage: int, x: Tensor) -> Values:
        seen: Values = {}
        if stage > 0:
            seen["value"] = self.head(x)
        if self.token_block is not None and stage == self.last - 1:
            seen["ahead"] = self.head(self.token_block(x))  # the exit after this stage
        return seen

    def finish(self, observed: dict[int, Values]) -> Values:
        def score(exit: int) -> Tensor:
            return observed[exit]["value"] if exit in observed else observed[exit - 1]["ahead"]

        results: Values = {}
        if "exit_scores" in self.outputs:
            results["exit_scores"] = torch.stack(
                [score(exit) for exit in range(1, self.depth + 1)], dim=1
            )
        if "score" in self.outputs:
            terms = [weight * score(exit) for exit, weight in self.fusion_weights.items()]
            results["score"] = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        return results
