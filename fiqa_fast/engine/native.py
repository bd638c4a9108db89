# SPDX-License-Identifier: Apache-2.0
"""The native engine: whole blocks in our own kernels, for the CPU.

Weights are packed once for the processor's level. A pass takes a few images through all blocks in
one thread, with nothing but a head's keys or a slice of the MLP between the matrices; where there
are fewer passes than threads, threads share one. A row's arithmetic is the same wherever it stands
and whoever computes it. Products run in the chosen dtype; residual stream, norms and everything a
quality method computes are float32, and the patch embedding is, or nearly (16 bits of mantissa).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _load
from .._runtime import Network, Pass
from ..models.vit import Attention, Block, FaceViT, Linear, Mlp
from ..quality.method import Values
from ..workers import help_with, run_shared
from .engine import Engine, Observed, prepared_part

FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
# Tokens per pass: enough rows for every panel of weights that is fetched, few enough that what lies
# between the matrices stays in the second cache.
PASS_TOKENS = 512
# Rows of a tile: memory is for whole ones.
TILE_ROWS = 16


def reason_against(vit: FaceViT, device: torch.device, dtype: torch.dtype) -> str:
    """Why the engine does not run this model so; empty where it does."""
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device}"
    if dtype not in FORMATS:
        return f"it computes in float32, bfloat16 or int8, not in {dtype}".replace("torch.", "")
    activation = nn.ReLU6 if vit.config.activation == "relu6" else nn.GELU
    for number, block in enumerate(vit.blocks, 1):
        if type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            return f"block {number} was replaced"
        act: Any = block.mlp.act
        if type(act) is not activation or getattr(act, "approximate", "none") != "none":
            return f"the activation of block {number} is {act}"
        layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        if any(type(layer) is not Linear for layer in layers):
            return f"a linear layer of block {number} was replaced"
        if not block.attn.scale > 0:
            return f"block {number} scales its logits by {block.attn.scale}"
    return ""


class NativeEngine(Engine):
    """Our kernels, on a CPU."""

    name = "native"

    def build(self, vit: FaceViT) -> None:
        self.tokens, self.width = vit.config.num_tokens, vit.config.embed_dim
        self.max_images = max(1, PASS_TOKENS // self.tokens)
        high = self.dtype == torch.float32 and self.float32_precision == "high"
        format = "high" if high else FORMATS[self.dtype]
        self.network = _packed(vit, self.last_stage, format, self.max_images, self._block)
        # Between its stages the stream is all there is; memory for it goes round.
        self.streams: deque[Stream] = deque()
        self.stops = sorted(self.method.stages | {self.last_stage})

    def _block(self, block: Block) -> Block:
        # Weights are read from where they lie, and not written to.
        layers = [part for part in block.modules() if isinstance(part, Linear)]
        lent = {id(layer.weight): nn.Parameter(layer.weight.detach()) for layer in layers}
        return prepared_part(block, self.device, self.dtype, lent)

    def split(self, images: Tensor) -> Sequence[Tensor]:
        count = -(-len(images) // self.max_images)
        groups: Sequence[Tensor] = images.tensor_split(count)
        return groups

    def observe(self, images: Tensor, threads: int) -> Observed:
        count = len(images)
        try:
            stream = self.streams.pop()
        except IndexError:
            stream = Stream(self.max_images, self.tokens, self.width, self.network.stride)
        x = stream.images[:count]
        seen: dict[int, Values] = {}
        pixels: np.ndarray[Any, Any] | None = images.contiguous().numpy()
        done = 0
        for stage in self.stops:
            work = Pass(self.network, done, stage, count, stream.array, pixels, threads).work
            help_with(work, threads - 1)
            work()
            done, pixels = stage, None
            if stage in self.method.stages:
                seen[stage] = self.method.observe(stage, x, {})
        embedding_rows = None if self.head is None else self.head.rows(x)
        self.streams.append(stream)
        return Observed(seen, embedding_rows)


class Stream:
    """Memory for the residual stream of a pass: whole tiles of rows, and the images' part of it."""

    def __init__(self, images: int, tokens: int, width: int, stride: int) -> None:
        rows = -(-images * tokens // TILE_ROWS) * TILE_ROWS
        memory = torch.empty(rows, stride, dtype=torch.float32)
        self.array = memory.numpy()
        self.images = memory[: images * tokens, :width].unflatten(0, (images, tokens))


def _packed(
    vit: FaceViT, depth: int, format: str, max_images: int, prepared: Callable[[Block], Block]
) -> Network:
    """The first ``depth`` blocks, each as ``prepared`` makes it, and what is before them."""
    config = vit.config
    embedding = vit.patch_embed.proj
    begin = vit.pos_embed.detach()[0].to("cpu", torch.float32, copy=True)
    prefix = config.num_prefix_tokens
    if prefix:
        begin[:prefix] += vit.qs_token.detach()[0].to(begin)
    if embedding.bias is not None:
        begin[prefix:] += embedding.bias.detach().to(begin)
    network = Network(
        level=_load.isa(),
        format=format,
        image_size=config.img_size,
        patch_size=config.patch_size,
        prefix=prefix,
        dim=config.embed_dim,
        heads=config.num_heads,
        hidden=config.hidden_dim,
        relu6=config.activation == "relu6",
        depth=depth,
        max_images=max_images,
        embedding=_array(embedding.weight.flatten(1)),
        positions=_array(begin),
    )
    run_shared(lambda n: _set_block(network, n, prepared(vit.blocks[n])), depth)
    return network


def _set_block(network: Network, number: int, block: Block) -> None:
    attention, mlp = block.attn, block.mlp
    network.set_block(
        number,
        scale=attention.scale,
        norm1=_norm(block.norm1),
        qkv=_linear(attention.qkv),
        proj=_linear(attention.proj),
        norm2=_norm(block.norm2),
        fc1=_linear(mlp.fc1),
        fc2=_linear(mlp.fc2),
    )


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().float().contiguous().numpy()


def _norm(norm: nn.LayerNorm) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    return _array(norm.weight), _array(norm.bias), norm.eps


def _linear(linear: nn.Linear) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    return _array(linear.weight), None if linear.bias is None else _array(linear.bias)
