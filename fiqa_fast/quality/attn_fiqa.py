# SPDX-License-Identifier: Apache-2.0
"""ATTN-FIQA (arXiv 2604.22841): quality is the mean pre-softmax attention logit of a block.

With y = LN(x) [N, D], q = y Wq + bq, k = y Wk + bk, H heads of size d and s = d^-1/2, the mean of
the H N^2 logits s q_hi . k_hj is bilinear and factorises exactly. With m = mean_i y_i,

    q_mean = Wq m + bq,   k_mean = Wk m + bk
    head_score_h = s q_mean_h . k_mean_h,    score = mean_h head_score_h
    key_map_j    = (s / H) sum_h q_mean_h . k_hj  = (s / H) (y_j . Wk^T q_mean + bk . q_mean)

and likewise the query map; without the sum and 1 / H, the key map is head h's own. So block l's
quality needs blocks 1..l-1, one LayerNorm and 2 D^2 multiply-adds; the logits never exist. All of
it is float32, whatever the blocks compute in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import UnsupportedModelError
from ..models.gauge import Gauge, GaugeRow
from ..models.vit import Block, FaceViT
from .fusion import exit_weights
from .method import Norm, Tap, Values, image_by_image
from .reductions import OF_EVERY_LOGIT, REDUCTIONS, Heads, reduce_logits

OUTPUTS = (
    "score",
    "patch_map",
    "query_map",
    "head_scores",
    "exit_scores",
    "head_maps",
    "exit_maps",
)
_MAPS = ("patch_map", "query_map", "head_maps")


class QueryKey:
    """One block's first norm and its query and key projections, float32 on one device."""

    def __init__(self, block: Block, device: torch.device, *, maps: bool) -> None:
        attention, norm = block.attn, block.norm1
        dim = attention.qkv.in_features

        def place(t: Tensor) -> Tensor:
            return t.detach().to(device, torch.float32, copy=True)

        self.norm_weight, self.norm_bias = place(norm.weight), place(norm.bias)
        self.eps = norm.eps
        self.weight = place(attention.qkv.weight[: 2 * dim])  # [2 D, D]: queries, keys
        bias = dict(attention.qkv.named_parameters()).get("bias")
        self.bias = None if bias is None else place(bias[: 2 * dim])
        if maps:  # [2, D, D]
            self.transposed = self.weight.unflatten(0, (2, dim)).mT.contiguous()
        self.dim, self.num_heads, self.scale = dim, attention.num_heads, attention.scale

    @property
    def norm(self) -> Norm:
        return self.norm_weight, self.norm_bias, self.eps

    def normed(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        return F.layer_norm(x, (self.dim,), self.norm_weight, self.norm_bias, self.eps)

    def mean(self, x: Tensor) -> Tensor:
        """The mean normed token [B, D]."""
        return ops.mean_layer_norm(x, self.norm_weight, self.norm_bias, self.eps)

    def pooled(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Means over the tokens of all queries and of all keys, each [B, D], heads in order."""
        both = ops.batch_invariant_linear(mean, self.weight, self.bias)
        return both[:, : self.dim], both[:, self.dim :]

    def query_mean(self, mean: Tensor) -> Tensor:
        """The first of :meth:`pooled`, bit for bit, at half the cost."""
        bias = None if self.bias is None else self.bias[: self.dim]
        return ops.batch_invariant_linear(mean, self.weight[: self.dim], bias)

    def head_scores(self, q_mean: Tensor, k_mean: Tensor) -> Tensor:  # [B, D] -> [B, H]
        products = (q_mean * k_mean).unflatten(-1, (self.num_heads, -1))
        scores: Tensor = self.scale * products.sum(-1)
        return scores

    def head_weights(self, heads: Heads) -> Tensor:
        """[D]: s / H for every head, or s for the one that was chosen and 0 elsewhere."""
        weights = torch.full((self.num_heads, 1), self.scale / self.num_heads, dtype=torch.float32)
        if isinstance(heads, int):
            weights.zero_()[heads] = self.scale
        return weights.repeat_interleave(self.dim // self.num_heads).to(self.weight.device)

    def phi(self, q_mean: Tensor) -> Tensor:
        """What a gauge weighs: (s / H) q_mean, [B, D], heads in order."""
        phi: Tensor = self.scale / self.num_heads * q_mean
        return phi

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Every token's query and key, each [B, H, N, d]."""
        both = F.linear(self.normed(x), self.weight, self.bias)
        q, k = both.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k

    def map_of(self, x: Tensor, partner: Tensor, of_keys: bool) -> Tensor:
        """sum over features of partner [B, D] times each token's key (or query): [B, N]."""
        rows = slice(self.dim, None) if of_keys else slice(0, self.dim)
        direction = ops.batch_invariant_linear(partner, self.transposed[int(of_keys)])  # [B, D]
        scores = ops.mean_layer_norm_map(
            x, self.norm_weight, self.norm_bias, self.eps, direction
        ).map
        if self.bias is None:
            return scores
        return scores + (partner * self.bias[rows]).sum(-1, keepdim=True)

    def head_maps(self, x: Tensor, q_mean: Tensor) -> Tensor:
        """What each token of x [B, N, D] receives in each head: [B, H, N].

        One direction u_h = s Wk_h^T q_mean_h per head, D^2 multiply-adds for all of them, and one
        product of the normed tokens with all, N D H; keys would be N D^2.
        """
        q_mean = self.scale * q_mean.unflatten(-1, (self.num_heads, 1, -1))  # [B, H, 1, d]
        weight = self.weight[self.dim :].unflatten(0, (self.num_heads, -1))  # [H, d, D]

        def product(part: Tensor, query: Tensor) -> Tensor:
            directions = torch.matmul(query, weight).squeeze(-2)  # [B, H, D]
            return torch.matmul(directions, self.normed(part).mT)

        maps = image_by_image(product, x, q_mean)
        if self.bias is None:
            return maps
        bias = self.bias[self.dim :].unflatten(0, (self.num_heads, 1, -1))
        return torch.add(maps, (q_mean * bias).sum(-1))


class AttnFiqa:
    """ATTN-FIQA at one block, or fused over blocks 1..exit, with the chosen reduction and heads.

    Block l is seen at stage l - 1, its input. ``gauge`` calibrates the mean over all heads; the
    query map, the head scores and the head maps are the published logits in any case. ``tokens``
    says whose logits count, ``"patch"`` or ``"all"``; maps have the patches' values in either case.

    A fusion fuses the maps of the exits as it does their scores; ``exit_scores`` and ``exit_maps``
    are those of every block by itself, whatever ``exit`` and ``fusion`` say.
    """

    def __init__(
        self,
        vit: FaceViT,
        outputs: tuple[str, ...],
        *,
        reduction: str = "mean",
        heads: Heads = "all",
        exit: int | None = None,
        fusion: str | None = None,
        tokens: str = "patch",
        gauge: Gauge | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        depth = vit.config.depth
        # The N of the papers is the patches: a quality token before them is left out.
        self.first_token = vit.config.num_prefix_tokens if tokens == "patch" else 0
        self.num_patches = vit.config.num_patches
        exit = depth if exit is None else exit
        _check_options(reduction, heads, vit.config.num_heads)
        head_dim = vit.config.embed_dim // vit.config.num_heads
        if reduction in OF_EVERY_LOGIT and head_dim > ops.MAX_HEAD_DIM:
            raise UnsupportedModelError(
                f"reduction={reduction!r} takes heads of at most {ops.MAX_HEAD_DIM} features, this "
                f"model's have {head_dim}"
            )
        self.outputs, self.reduction, self.heads = outputs, reduction, heads
        self.depth = depth
        self.fusion_weights = exit_weights(exit, fusion)
        every = "exit_scores" in outputs or "exit_maps" in outputs
        blocks = range(1, depth + 1) if every else self.fusion_weights
        place = torch.device(device)
        self.blocks = {
            number: QueryKey(
                vit.blocks[number - 1], place, maps=bool(self._maps_of(number) - {"head_maps"})
            )
            for number in blocks
        }
        # On the device from the start: a copy in between would make a GPU wait for the host.
        self.gauge: dict[int, GaugeRow] = {}
        if gauge is not None:
            self.gauge = {number: gauge.row(number).to(place) for number in blocks}
        self.head_weights = {n: block.head_weights(heads) for n, block in self.blocks.items()}
        self.stages = frozenset(number - 1 for number in blocks)

    def tap(self, stage: int) -> Tap | None:
        block = self.blocks[stage + 1]
        enough = self.reduction == "mean" and not self._maps_of(stage + 1)
        return Tap(block.norm, mean_from=self.first_token, enough=enough)

    def observe(self, stage: int, x: Tensor, tapped: Values) -> Values:
        number = stage + 1
        block = self.blocks[number]
        x = x[:, self.first_token :]
        seen = {"mean": tapped["mean"] if tapped else block.mean(x)}
        if self.reduction != "mean":
            seen["reduced"] = image_by_image(lambda part: self._reduced(block, part), x)
        if wanted := self._maps_of(number):
            seen.update(self._maps(wanted, number, block, x, seen["mean"]))
        return seen

    def finish(self, observed: dict[int, Values]) -> Values:
        for stage, seen in observed.items():
            seen.update(self._pooled_values(stage + 1, seen))
        results: Values = {}
        for output, name in (("exit_scores", "value"), ("exit_maps", "patch_map")):
            if output in self.outputs:
                every = [observed[stage][name] for stage in range(self.depth)]
                results[output] = torch.stack(every, dim=1)
        for output in ("score", "head_scores", *_MAPS):
            if output in self.outputs:
                name = "value" if output == "score" else output
                terms = [
                    weight * observed[number - 1][name]
                    for number, weight in self.fusion_weights.items()
                ]
                results[output] = torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        return results

    def _pooled_values(self, number: int, seen: Values) -> Values:
        """Block ``number``'s value and head scores, of any number of images."""
        if "reduced" in seen and "head_scores" not in self.outputs:
            return {"value": seen["reduced"]}
        block = self.blocks[number]
        q_mean, k_mean = block.pooled(seen["mean"])
        head_scores = block.head_scores(q_mean, k_mean)
        if "reduced" in seen:
            value = seen["reduced"]
        elif isinstance(self.heads, int):
            value = head_scores[:, self.heads]
        else:
            value = self._calibrated(number, block, head_scores.mean(1), q_mean)
        return {"value": value, "head_scores": head_scores}

    def _reduced(self, block: QueryKey, x: Tensor) -> Tensor:
        return reduce_logits(*block.project(x), block.scale, self.reduction, self.heads)

    def _maps_of(self, number: int) -> set[str]:
        """The maps that are wanted of block ``number``."""
        wanted = set(_MAPS) & set(self.outputs) if number in self.fusion_weights else set()
        return wanted | {"patch_map"} if "exit_maps" in self.outputs else wanted

    def _maps(
        self,
        wanted: set[str],
        number: int,
        block: QueryKey,
        x: Tensor,
        mean: Tensor,
    ) -> Values:
        patches = x[:, -self.num_patches :]
        maps: Values = {}
        if "query_map" in wanted:
            q_mean, k_mean = block.pooled(mean)
            partner = self.head_weights[number] * k_mean
            maps["query_map"] = block.map_of(patches, partner, of_keys=False)
        else:
            q_mean = block.query_mean(mean)
        if "patch_map" in wanted:
            partner = self.head_weights[number] * q_mean
            key_map = block.map_of(patches, partner, of_keys=True)
            maps["patch_map"] = self._calibrated(number, block, key_map, q_mean)
        if "head_maps" in wanted:
            maps["head_maps"] = block.head_maps(patches, q_mean)
        return maps

    def _calibrated(self, number: int, block: QueryKey, mean: Tensor, q_mean: Tensor) -> Tensor:
        if number not in self.gauge:
            return mean
        return self.gauge[number].calibrate(mean, block.phi(q_mean))


def _check_options(reduction: str, heads: Heads, num_heads: int) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if heads not in ("all", "average") and not (type(heads) is int and 0 <= heads < num_heads):
        raise ValueError(
            f'heads must be "all", "average" or a head\'s number from 0 to {num_heads - 1}, '
            f"got {heads!r}"
        )
