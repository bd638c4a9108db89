# SPDX-License-Identifier: Apache-2.0
"""ViT-FIQA (arXiv 2508.13957) at the last block, and EX-FIQA (arXiv 2604.22842) at any.

After a block: final norm, then the quality head. In evaluation mode every part of the head behind
the norm is affine (Linear, BN, Linear, BN, BN, Linear; for the T variant BN, Linear on the quality
token), so it folds into one vector per token:

    score = sum_n LN(x)_n . w_n + c

which reads the tokens once and costs N D per exit. All of it is float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..models.casting import round_keeping_row_sums
from ..models.packed import PackedLinear, can_pack
from ..models.rows import RowLinear, batch_norm_as_affine
from ..models.vit import Block, FaceViT, Linear, fused_attention, ieee_attention
from .fusion import exit_weights
from .method import Tap, Values, image_by_image

OUTPUTS = ("score", "exit_scores")


class FoldedHead:
    """Final norm and quality head as one dot product, folded in float64."""

    def __init__(self, vit: FaceViT, device: torch.device) -> None:
        config, norm = vit.config, vit.norm
        token = config.quality_head == "token"
        head, self.constant = _fold([*([] if token else vit.feature), *vit.head_qs])
        weight = head.view(-1, config.embed_dim)  # [N, D]
        self.constant += (weight @ norm.bias.detach().cpu().double()).sum().item()
        weight = weight * norm.weight.detach().cpu().double()
        self.weight = weight.to(device, torch.float32)
        self.eps = norm.eps
        self.tokens = slice(0, 1) if token else slice(None)

    def dot(self, x: Tensor) -> Tensor:
        """Stream after a block [B, N, D], or its token 0 alone for the T variant, to [B]: the
        scores less the constant."""
        return ops.layer_norm_dot(x[:, self.tokens], None, None, self.eps, self.weight)


def _fold(layers: list[nn.Module]) -> tuple[Tensor, float]:
    """A chain of Linear and BatchNorm layers with one output as x -> x . w + c, in float64."""
    row, constant = torch.ones(1, dtype=torch.float64), 0.0
    for layer in reversed(layers):
        if isinstance(layer, nn.Linear):
            if dict(layer.named_parameters()).get("bias") is not None:
                constant += (row @ layer.bias.detach().cpu().double()).item()
            # In parts: the first layer's weights are most of the model.
            parts = layer.weight.detach().cpu().split(4096, dim=1)
            row = torch.cat([row @ part.double() for part in parts])
        elif isinstance(layer, nn.BatchNorm1d):
            factor, shift = batch_norm_as_affine(layer)
            constant += (row @ shift).item()
            row = row * factor
        else:
            raise TypeError(f"not an affine layer: {type(layer).__name__}")
    return row, constant


class TokenBlock:
    """A block computed for token 0 alone: all keys and values, but one query and one MLP row.

    In two steps: :meth:`attend` reads the tokens, and is done where they are; what follows is one
    row per image, and is done for all images at once.
    """

    def __init__(
        self, block: Block, num_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        attention, mlp, dim = block.attn, block.mlp, block.attn.qkv.in_features
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.norms = [
            (
                norm.weight.detach().to(device, torch.float32, copy=True),
                norm.bias.detach().to(device, torch.float32, copy=True),
                norm.eps,
            )
            for norm in (block.norm1, block.norm2)
        ]
        weight, bias = attention.qkv.weight, attention.qkv.bias
        self.query = RowLinear(weight[:dim], None if bias is None else bias[:dim], device, dtype)
        self.key_value: nn.Module = Linear(dim, 2 * dim, bias=bias is not None)
        self.key_value.weight = nn.Parameter(weight[dim:].detach().clone())
        if bias is not None:
            self.key_value.bias = nn.Parameter(bias[dim:].detach().clone())
            self.key_value.bias.data[:dim] = 0  # softmax does not see them: see models.casting
        self.key_value.requires_grad_(False).to(device, dtype)
        if device.type == "cpu" and can_pack(dtype):
            self.key_value = PackedLinear(self.key_value, num_tokens)
        self.proj = RowLinear(attention.proj.weight, attention.proj.bias, device, dtype)
        self.fc1 = RowLinear(mlp.fc1.weight, mlp.fc1.bias, device, dtype)
        fc2 = mlp.fc2.weight.detach()
        if dtype != torch.float32:
            fc2 = round_keeping_row_sums(fc2.float(), dtype)
        self.fc2 = RowLinear(fc2, mlp.fc2.bias, device, dtype)
        self.act = mlp.act
        exact = device.type != "cpu" and dtype == torch.float32
        self.attention = ieee_attention if exact else fused_attention

    def attend(self, x: Tensor) -> Tensor:
        """Stream before the block [B, N, D] to what token 0 gathers from all tokens, [B, D]."""
        y = self._norm(0, x)
        q = self.query(y[:, 0]).unflatten(-1, (self.num_heads, 1, -1))  # [B, H, 1, d]
        kv = image_by_image(self.key_value, y).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # [B, H, N, d]
        out = image_by_image(self._attention, q.to(kv.dtype), k, v)
        return out.flatten(1).float()

    def finish(self, token: Tensor, attended: Tensor) -> Tensor:
        """Token 0 before the block, and what it gathered, to token 0 after it; each [B, D]."""
        token = token + self.proj(attended)
        return token + self.fc2(self.act(self.fc1(self._norm(1, token))))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v, self.scale)

    def _norm(self, number: int, x: Tensor) -> Tensor:
        weight, bias, eps = self.norms[number]
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


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
        config, device = vit.config, torch.device(device)
        self.outputs, self.depth = outputs, config.depth
        self.fusion_weights = exit_weights(config.depth if exit is None else exit, fusion)
        self.head = FoldedHead(vit, device)
        self.block_eps = {stage: block.norm1.eps for stage, block in enumerate(vit.blocks)}
        exits = set(self.fusion_weights)
        if "exit_scores" in outputs:
            exits = set(range(1, config.depth + 1))
        self.last = max(exits)
        self.exits = frozenset(exits)
        self.token_block: TokenBlock | None = None
        if config.quality_head == "token" and "embedding" not in outputs:
            block = vit.blocks[self.last - 1]
            self.token_block = TokenBlock(block, config.num_tokens, device, dtype)
            exits = (exits - {self.last}) | {self.last - 1}
        self.stages = frozenset(exits)

    def tap(self, stage: int) -> Tap | None:
        # The final norm's weight and bias are folded into w; the norm that reads the stage must
        # agree with it in eps. Behind the last block there is none to agree with.
        if stage not in self.exits or self.block_eps.get(stage, self.head.eps) != self.head.eps:
            return None
        ahead = self.token_block is not None and stage == self.last - 1
        return Tap((None, None, self.head.eps), w=self.head.weight, enough=not ahead)

    def observe(self, stage: int, x: Tensor, tapped: Values) -> Values:
        seen: Values = {}
        if stage in self.exits:
            seen["dot"] = tapped["dot"] if tapped else self.head.dot(x)
        if self.token_block is not None and stage == self.last - 1:
            seen["token"] = x[:, 0].clone()  # not a view, which would keep all tokens
            seen["attended"] = self.token_block.attend(x)
        return seen

    def finish(self, observed: dict[int, Values]) -> Values:
        dots = {stage: seen["dot"] for stage, seen in observed.items() if "dot" in seen}
        if self.token_block is not None:
            seen = observed[self.last - 1]
            token = self.token_block.finish(seen["token"], seen["attended"])
            dots[self.last] = self.head.dot(token.unsqueeze(1))
        results: Values = {}
        if "exit_scores" in self.outputs:
            every = [dots[exit] for exit in range(1, self.depth + 1)]
            results["exit_scores"] = torch.stack(every, dim=1) + self.head.constant
        if "score" in self.outputs:
            terms = [weight * dots[exit] for exit, weight in self.fusion_weights.items()]
            results["score"] = sum(terms[1:], terms[0]) + self.head.constant
        return results
