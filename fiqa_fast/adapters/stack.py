# SPDX-License-Identifier: Apache-2.0
"""Where a ViT's blocks are, which attention each has, and which of its tokens are patches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from torch import nn

from ..errors import UnsupportedModelError
from .custom import HINT, registered
from .projections import is_attention

# Tokens that stand before the patches, by the names their parameters have in the wild.
_TOKENS = (
    "cls_token", "class_token", "class_embedding", "cls_tokens", "dist_token",
    "distillation_token", "reg_token", "reg_tokens", "register_token", "register_tokens",
    "storage_tokens", "qs_token",
)  # fmt: skip
_POSITIONS = ("pos_embed", "pos_embedding", "position_embeddings", "position_embedding.weight",
              "positional_embedding")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stack:
    """Names are module names within the model.

    ``patch_embed`` is the layer whose output has one vector per patch; None where an adapter says
    how many tokens stand before the patches and there is no such layer.
    """

    blocks: tuple[str, ...]  # in the order in which they run
    prefix_tokens: int
    patch_embed: str | None
    positions: int | None  # tokens the position embedding is made for
    drops_patches: bool  # some of them are left out in training

    @property
    def depth(self) -> int:
        return len(self.blocks)


def find_stack(vit: nn.Module) -> Stack:
    """Find the one stack of self-attention blocks.

    Raises:
        UnsupportedModelError: there is none, several, or the last block has several attentions.
    """
    stacks = list(_stacks(vit, ""))
    name = type(vit).__name__
    if not stacks:
        raise UnsupportedModelError(
            f"{name}: wanted a list of blocks with one self-attention each, got {_seen(vit)}; "
            f"{HINT}"
        )
    if len(stacks) > 1:
        listed = ", ".join(f"{where} ({len(blocks)})" for where, blocks in stacks[:4])
        raise UnsupportedModelError(
            f"{name}: wanted one list of attention blocks, got {len(stacks)}: {listed}; pass the "
            "one image tower, plain and not hierarchical"
        )
    where, blocks = stacks[0]
    _refuse_shuffling(vit)
    # named_children leaves out a block that occurs a second time.
    names = tuple(f"{where}.{child}" for child in blocks._modules)
    custom = registered(vit.get_submodule(attention_of(vit, names[-1])))
    prefix = custom.prefix_tokens if custom is not None else None
    return Stack(
        blocks=names,
        prefix_tokens=_count_prefix(vit, where) if prefix is None else prefix,
        patch_embed=_patch_embed(vit, where, needed=prefix is None),
        positions=_positions(vit, where),
        drops_patches=_drops_patches(vit),
    )


def attention_of(vit: nn.Module, block: str) -> str:
    """The name of a block's one self-attention."""
    module = vit.get_submodule(block)
    found = _attentions(module, block)
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(vit).__name__}: wanted one self-attention in the block {block}, got "
            f"{len(found)}: {', '.join(n for n, _ in found) or _seen(module)}; {HINT}"
        )
    return found[0][0]


def _recognised(module: nn.Module) -> bool:
    return registered(module) is not None or is_attention(module)


def _attentions(block: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Outermost recognised modules of a block."""
    if _recognised(block):
        return [(name, block)]
    found = []
    for child_name, child in block.named_children():
        found += _attentions(child, f"{name}.{child_name}")
    return found


def _stacks(module: nn.Module, name: str) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Innermost lists whose last element contains a self-attention."""
    if _recognised(module):
        return
    inner = []
    for child_name, child in module.named_children():
        inner += list(_stacks(child, f"{name}.{child_name}" if name else child_name))
    yield from inner
    # An element that is itself the model's root has no name to be found by later.
    if not inner and name and isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
        holds = [bool(_attentions(element, "")) for element in module]
        # A list such as [attention, mlp] is one block, not a stack of them.
        if all(holds):
            yield name, module


def _count_prefix(vit: nn.Module, blocks: str) -> int:
    """Tokens held by what stands before the blocks: a pooling head after them has its own."""
    count = 0
    for _, module in _before(vit, blocks):
        for name, parameter in module.named_parameters(recurse=False):
            if name in _TOKENS:
                count += parameter.shape[-2] if parameter.dim() > 1 else 1
    return count


def _patch_embed(vit: nn.Module, blocks: str, needed: bool) -> str | None:
    """The last convolution before the blocks, whose output is the grid; else the last Linear."""
    convs = [n for n, m in _before(vit, blocks) if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    if convs or not needed:
        return convs[-1] if convs else None
    linears = [n for n, m in _before(vit, blocks) if isinstance(m, nn.Linear)]
    if not linears:
        raise UnsupportedModelError(
            f"{type(vit).__name__}: wanted a convolution or Linear before {blocks} that embeds the "
            "patches, which tells how many tokens are patches, got none; tell it by "
            f"prefix_tokens=...: {HINT}"
        )
    return linears[-1]


def _before(vit: nn.Module, blocks: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order of definition, up to the blocks."""
    return itertools.takewhile(lambda named: named[0] != blocks, vit.named_modules())


def _positions(vit: nn.Module, blocks: str) -> int | None:
    for name, tensor in vit.named_parameters():
        if not name.startswith(f"{blocks}.") and name.endswith(_POSITIONS):
            return int(tensor.shape[-2])
    return None


def _drops_patches(vit: nn.Module) -> bool:
    """timm's patch dropout, arcface_torch's random masking."""
    for name, module in vit.named_modules():
        if name.endswith("patch_drop") and not isinstance(module, nn.Identity):
            return True
        ratio = getattr(module, "mask_ratio", 0)
        if isinstance(ratio, (int, float)) and ratio > 0:
            return True
    return False


def _refuse_shuffling(vit: nn.Module) -> None:
    """Masked autoencoders of transformers draw and shuffle patches outside of training, too."""
    for name, module in vit.named_modules():
        config = getattr(module, "config", None)
        if hasattr(module, "random_masking") and hasattr(config, "mask_ratio"):
            raise UnsupportedModelError(
                f"{type(vit).__name__}: wanted all patches in order, got random_masking in {name}; "
                "load the encoder into a plain ViT"
            )


def _seen(module: nn.Module) -> str:
    """What looks like attention, for an error message."""
    named = {
        type(m).__name__
        for n, m in module.named_modules()
        if any(word in f"{type(m).__name__} {n}".lower() for word in ("attention", "attn"))
        and not isinstance(m, (nn.Linear, nn.Identity, nn.Dropout, nn.ModuleList))
    }
    listed = ", ".join(sorted(named)[:4])
    if any(_recognised(m) for m in module.modules()):
        return f"{listed}, not in every element of one list"
    return f"{listed} without readable q and k projections" if named else "no attention at all"
