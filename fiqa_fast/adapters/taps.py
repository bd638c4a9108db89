# SPDX-License-Identifier: Apache-2.0
"""Hooks that read quality off a foreign model's forward pass, and what carries it out of there."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedModelError
from ..models.gauge import GaugeRow
from .remade import Remade, remake, unmake
from .site import AttentionSite

_PREFIX_HINT = "tell the prefix by fiqa_fast.register_attention(..., prefix_tokens=...)"


@dataclasses.dataclass(eq=False)
class Pass:
    """What one forward pass has seen so far."""

    grid: tuple[int, ...] | None = None  # images, then patches along each side
    values: tuple[Tensor, ...] | None = None
    # (mean logit [B], phi [B, A]) of every block with a PooledTap that has run
    pooled: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)


class Recorder:
    """Carries values from the hooks to the caller. A copy of it starts empty."""

    def __init__(self, on_demand: bool) -> None:
        self.on_demand = on_demand  # measure the passes that a caller began, not every pass
        # Holds one object per pass: torch.compile, where its graph breaks, loses what is written
        # to several attributes of a threading.local.
        self._thread = threading.local()
        self.last: tuple[Tensor, ...] | None = None

    @property
    def current(self) -> Pass | None:
        """The pass that this thread is in."""
        return getattr(self._thread, "current", None)

    @current.setter
    def current(self, value: Pass | None) -> None:
        self._thread.current = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_recorder, (self.on_demand, RemovableHandle.next_id)


def _restored_recorder(on_demand: bool, next_id: int) -> Recorder:
    # torch numbers hooks per process, and a pickled model keeps its numbers: they must not be
    # given out again, or the next hook on that module would replace ours.
    RemovableHandle.next_id = max(RemovableHandle.next_id, next_id)
    return Recorder(on_demand)


class GridTap:
    """Forward hook of the patch embedding: how many patches there are, in which grid."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not self.recorder.on_demand:
            self.recorder.current = Pass()
        current = self.recorder.current
        if current is not None:
            sides = output.shape[1:-1] if isinstance(module, nn.Linear) else output.shape[2:]
            current.grid = (output.shape[0], *sides)


class PooledTap:
    """Forward hook of an attention: keeps its mean logit and its phi.

    The hooks of all blocks are one object: torch.compile reuses what it compiled for one block for
    the next, hook and all.
    """

    def __init__(self, site: AttentionSite, tokens: str, recorder: Recorder) -> None:
        self.site, self.tokens, self.recorder = site, tokens, recorder

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        current = self.recorder.current
        if current is None:
            return  # a submodule was called on its own, or a checkpoint recomputes it
        site = self.site
        patch_grid(site, module, site.tokens(args, kwargs), current.grid)
        prefix = site.stack.prefix_tokens
        means = site.means(module, args, kwargs, prefix, self.tokens == "all", ())
        current.pooled.append((means.head_scores.mean(1), means.phi))


def pooled_taps(
    sites: Sequence[AttentionSite], tokens: str, recorder: Recorder
) -> dict[str, PooledTap]:
    """Hooks for these attentions, by name: one object for all that are read alike."""
    taps: dict[AttentionSite, PooledTap] = {}
    named = {}
    for site in sites:
        alike = dataclasses.replace(site, attention="")
        named[site.attention] = taps.setdefault(alike, PooledTap(site, tokens, recorder))
    return named


class AttentionTap:
    """Forward hook of the last attention: computes the quality from what it was given.

    A hook after the forward sees the input that the forward saw, whatever hooks before it did.
    ``gauge`` has a row for every block.
    """

    def __init__(
        self,
        site: AttentionSite,
        outputs: tuple[str, ...],
        tokens: str,
        gauge: tuple[GaugeRow, ...] | None,
        recorder: Recorder,
    ) -> None:
        self.site, self.outputs, self.tokens = site, outputs, tokens
        self.gauge, self.recorder = gauge, recorder

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        recorder = self.recorder
        current = recorder.current
        if recorder.on_demand:
            if current is None:
                return  # a submodule was called on its own, or a checkpoint recomputes it
            if current.values is not None:
                raise UnsupportedModelError(
                    f"{self.site.class_name}: wanted the last attention to run once per forward "
                    "pass, it ran twice"
                )
            current.values = self._measure(module, args, kwargs, current)
            return
        recorder.current = None
        if _exporting() or _recomputing():
            return
        if current is None and self.site.stack.patch_embed is not None:
            recorder.last = None  # a submodule was called on its own: a pass without patches
            return
        recorder.last = self._measure(module, args, kwargs, current or Pass())

    def _measure(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], current: Pass
    ) -> tuple[Tensor, ...]:
        site = self.site
        prefix = site.stack.prefix_tokens
        side = patch_grid(site, module, site.tokens(args, kwargs), current.grid)
        means = site.means(module, args, kwargs, prefix, self.tokens == "all", self.outputs)
        last = (means.head_scores.mean(1), means.phi)
        values = []
        for name in self.outputs:
            if name == "score":
                value = self._calibrated(-1, *last)
            elif name == "exit_scores":
                value = self._exit_scores([*current.pooled, last])
            elif name == "head_scores":
                value = means.head_scores
            else:
                token_map = means.key_map if name == "patch_map" else means.query_map
                assert token_map is not None
                if name == "patch_map":
                    token_map = self._calibrated(-1, token_map, means.phi)
                value = token_map if side is None else token_map.unflatten(1, side)
            values.append(value)
        return tuple(values)

    def _exit_scores(self, pooled: list[tuple[Tensor, Tensor]]) -> Tensor:  # [B, L]
        depth = self.site.stack.depth
        if len(pooled) != depth:
            raise UnsupportedModelError(
                f"{self.site.class_name}: wanted each of {depth} blocks to run once before the "
                f"quality is read, {len(pooled)} did"
            )
        return torch.stack([self._calibrated(n, *block) for n, block in enumerate(pooled)], 1)

    def _calibrated(self, block: int, mean: Tensor, phi: Tensor) -> Tensor:
        return mean if self.gauge is None else self.gauge[block].calibrate(mean, phi)


def patch_grid(
    site: AttentionSite, module: nn.Module, y: Tensor, grid: tuple[int, ...] | None
) -> tuple[int, int] | None:
    """Rows and columns of patches, if known; checked against the tokens y [B, N, D] that came."""
    stack = site.stack
    prefix, batch, count = stack.prefix_tokens, y.shape[0], y.shape[1]
    if count <= prefix:
        raise UnsupportedModelError(
            f"{site.class_name}: wanted {prefix} prefix tokens and patches, got {count} tokens"
        )
    if grid is None:
        if stack.patch_embed is None:
            return None
        raise UnsupportedModelError(
            f"{site.class_name}: wanted {stack.patch_embed} to run before the attention and tell "
            f"the number of patches, it did not; {_PREFIX_HINT}"
        )
    images, *sides = grid
    patches = math.prod(sides)
    if batch == images and count - prefix == patches:
        return (sides[0], sides[1]) if len(sides) == 2 else None
    dropped = stack.drops_patches and module.training
    if dropped and batch == images and count - prefix < patches:
        return None
    raise UnsupportedModelError(
        f"{site.class_name}: wanted {images} x ({prefix} prefix + "
        f"{' x '.join(map(str, sides))} patch) tokens, got {batch} x {count}; {_PREFIX_HINT}"
    )


class Tapped(Remade):
    """Mixed into the class of an attention that has a tap.

    torch.compile compiles the blocks' common code once, where it compiles block by block, and does
    not look for hooks before it uses that for the next block. It does look at classes.
    """


def add_taps(vit: nn.Module, taps: Mapping[str, AttentionTap | PooledTap]) -> None:
    """Hook attentions, by name, and the patch embedding; all taps have one recorder."""
    tap = next(iter(taps.values()))
    stack = tap.site.stack
    if stack.patch_embed is not None:
        vit.get_submodule(stack.patch_embed).register_forward_hook(GridTap(tap.recorder))
    for name, tap in taps.items():
        attention = vit.get_submodule(name)
        attention.register_forward_hook(tap, with_kwargs=True)
        if not isinstance(attention, Tapped):
            remake(attention, Tapped)


def remove_taps(vit: nn.Module, of_wrappers: bool) -> None:
    """Remove what replace_last_attention added, and on request what with_quality did."""
    for module in vit.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, (AttentionTap, PooledTap, GridTap)) and (
                of_wrappers or not hook.recorder.on_demand
            ):
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
        taps = (AttentionTap, PooledTap)
        left = any(isinstance(hook, taps) for hook in module._forward_hooks.values())
        if isinstance(module, Tapped) and not left:
            unmake(module, Tapped)


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _recomputing() -> bool:
    """Whether a backward pass is running: gradient checkpointing calls forward again in it."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
