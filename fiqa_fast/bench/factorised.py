# SPDX-License-Identifier: Apache-2.0
"""The factorised computation in torch's operators: what we save, given to other engines.

The same arithmetic as our own engines leave out is left out here: ATTN-FIQA's last block is one
norm and two products with a mean, ViT-FIQA's head one dot product, and its T variant's last block
one query. What remains beside ours is how the blocks are computed.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.vit import Block, FaceViT
from ..quality.fusion import exit_weights
from ..quality.reductions import Heads
from ..quality.vit_fiqa import FoldedHead
from .published import normalised


class Factorised(nn.Module):
    """uint8 RGB [B, 3, S, S] to scores, float32 [B].

    The arguments are those of :class:`fiqa_fast.Scorer`. Blocks are a copy of ``vit``'s in
    ``dtype``, the quality is float32.

    Raises:
        ValueError: the reduction does not factorise.
    """

    def __init__(
        self,
        vit: FaceViT,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        method: str = "attn-fiqa",
        reduction: str = "mean",
        heads: Heads = "all",
        tokens: str = "patch",
        exit: int | None = None,
        fusion: str | None = None,
    ) -> None:
        super().__init__()
        if reduction != "mean":
            raise ValueError(f"reduction {reduction} is not a product of two means")
        place, self.dtype = torch.device(device), dtype
        exit = vit.config.depth if exit is None else exit
        self.weights = exit_weights(exit, fusion)
        attention = method == "attn-fiqa"
        blocks = list(vit.blocks[: exit - 1 if attention else exit])
        # Neither the blocks behind nor the embedding's head, most of the weights, are copied.
        idle = [block for block in vit.blocks[len(blocks) :] if block not in blocks]
        memo: dict[int, object] = {id(part): nn.Identity() for part in (*idle, vit.feature)}
        self.vit = copy.deepcopy(vit, memo).to(place, dtype)
        self.blocks = list(self.vit.blocks[: len(blocks)])
        if attention:
            first = vit.config.num_prefix_tokens if tokens == "patch" else 0
            readers: dict[int, nn.Module] = {
                number: _MeanLogit(vit.blocks[number - 1], first, heads) for number in self.weights
            }
        else:
            readers = dict.fromkeys(self.weights, _Head(vit))
        self.readers = nn.ModuleDict({str(n): reader for n, reader in readers.items()}).to(place)
        # Where attn-fiqa's exits are read: before their blocks.
        self.before = int(attention)
        self.token_alone = not attention and vit.config.quality_head == "token"

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self.vit.embed(normalised(pixels, self.dtype))
        terms = []
        for done in range(len(self.blocks) + 1):
            if done:
                block = self.blocks[done - 1]
                alone = self.token_alone and done == len(self.blocks)
                x = _token_alone(block, x) if alone else block(x)
            number = done + self.before
            if number in self.weights:
                terms.append(self.weights[number] * self.readers[str(number)](x.float()))
        score: Tensor = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        return (score,)


class _MeanLogit(nn.Module):
    """Block input [B, N, D] to the mean attention logit [B], from the mean normed token."""

    weight: Tensor
    bias: Tensor | None
    norm_weight: Tensor
    norm_bias: Tensor

    def __init__(self, block: Block, first_token: int, heads: Heads) -> None:
        super().__init__()
        attention, dim = block.attn, block.attn.qkv.in_features
        chosen = slice(heads, heads + 1) if isinstance(heads, int) else slice(None)

        def of_heads(t: Tensor) -> Tensor:  # rows of queries and keys: [2, heads, d, ..]
            rows: Tensor = t.detach().float()[: 2 * dim].unflatten(0, (2, attention.num_heads, -1))
            return rows[:, chosen]

        weight = of_heads(attention.qkv.weight)
        bias = attention.qkv.bias
        self.register_buffer("weight", weight.flatten(0, 2).contiguous(), persistent=False)
        self.register_buffer(
            "bias", None if bias is None else of_heads(bias).flatten().contiguous(), False
        )
        self.register_buffer("norm_weight", block.norm1.weight.detach().float(), persistent=False)
        self.register_buffer("norm_bias", block.norm1.bias.detach().float(), persistent=False)
        self.eps, self.first_token = block.norm1.eps, first_token
        self.factor = attention.scale / weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(
            x[:, self.first_token :], x.shape[-1:], self.norm_weight, self.norm_bias, self.eps
        )
        q, k = F.linear(y.mean(1), self.weight, self.bias).chunk(2, dim=1)
        score: Tensor = self.factor * (q * k).sum(1)
        return score


class _Head(nn.Module):
    """Stream after a block [B, N, D] to ViT-FIQA's score [B]."""

    weight: Tensor

    def __init__(self, vit: FaceViT) -> None:
        super().__init__()
        head = FoldedHead(vit, torch.device("cpu"))
        self.register_buffer("weight", head.weight, persistent=False)
        self.eps, self.tokens, self.constant = head.eps, head.tokens, head.constant

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x[:, self.tokens], x.shape[-1:], eps=self.eps)
        return (normed * self.weight).sum((1, 2)) + self.constant


def _token_alone(block: Block, x: Tensor) -> Tensor:
    """A block's output for token 0 alone: [B, N, D] to [B, 1, D]."""
    attention = block.attn
    y, token = block.norm1(x), x[:, :1]
    q, k, v = (
        F.linear(of, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for of, weight, bias in zip(
            (y[:, :1], y, y),
            attention.qkv.weight.chunk(3),
            _thirds(attention.qkv.bias),
            strict=True,
        )
    )
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scale)
    token = token + attention.proj(out.transpose(1, 2).flatten(2))
    result: Tensor = token + block.mlp(block.norm2(token))
    return result


def _thirds(bias: Tensor | None) -> tuple[Tensor | None, ...]:
    return (None, None, None) if bias is None else bias.chunk(3)
