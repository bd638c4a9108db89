# SPDX-License-Identifier: Apache-2.0
"""Hooks that read quality off a foreign model's forward pass, and what carries it out of there."""

from __future__ import annotations

import dataclasses
import math
import threading
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


class AttentionTap:
    """Forward hook of the last attention: computes the quality from what it was given.

    A hook after the forward sees the input that the forward saw, whatever hooks before it did.
    """

    def __init__(
        self,
        site: AttentionSite,
        outputs: tuple[str, ...],
        tokens: str,
        gauge: GaugeRow | None,
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
            current.values = self._measure(module, args, kwargs, current.grid)
            return
        recorder.current = None
        if _exporting() or _recomputing():
            return
        if current is None and self.site.stack.patch_embed is not None:
            recorder.last = None  # a submodule was called on its own: a pass without patches
            return
        grid = None if current is None else current.grid
        recorder.last = self._measure(module, args, kwargs, grid)

    def _measure(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        grid: tuple[int, ...] | None,
    ) -> tuple[Tensor, ...]:
        prefix = self.site.stack.prefix_tokens
        side = self._side(module, self.site.tokens(args, kwargs), grid)
        means = self.site.means(module, args, kwargs, prefix, self.tokens == "all", self.outputs)
        values = []
        for name in self.outputs:
            if name == "score":
                value = self._calibrated(means.head_scores.mean(1), means.phi)
            elif name == "head_scores":
                value = means.head_scores
            else:
                token_map = means.key_map if name == "patch_map" else means.query_map
                assert token_map is not None
                if name == "patch_map":
                    token_map = self._calibrated(token_map, means.phi)
                value = token_map if side is None else token_map.unflatten(1, side)
            values.append(value)
        return tuple(values)

    def _calibrated(self, mean: Tensor, phi: Tensor) -> Tensor:
        return mean if self.gauge is None else self.gauge.calibrate(mean, phi)

    def _side(
        self, module: nn.Module, y: Tensor, grid: tuple[int, ...] | None
    ) -> tuple[int, int] | None:
        """Rows and columns of patches, if known; checked against the tokens that came."""
        stack = self.site.stack
        prefix, batch, count = stack.prefix_tokens, y.shape[0], y.shape[1]
        if count <= prefix:
            raise UnsupportedModelError(
                f"{self.site.class_name}: wanted {prefix} prefix tokens and patches, got {count} "
                "tokens"
            )
        if grid is None:
            if stack.patch_embed is None:
                return None
            raise UnsupportedModelError(
                f"{self.site.class_name}: wanted {stack.patch_embed} to run before the last "
                f"attention and tell the number of patches, it did not; {_PREFIX_HINT}"
            )
        images, *sides = grid
        patches = math.prod(sides)
        if batch == images and count - prefix == patches:
            return (sides[0], sides[1]) if len(sides) == 2 else None
        dropped = stack.drops_patches and module.training
        if dropped and batch == images and count - prefix < patches:
            return None
        raise UnsupportedModelError(
            f"{self.site.class_name}: wanted {images} x ({prefix} prefix + "
            f"{' x '.join(map(str, sides))} patch) tokens, got {batch} x {count}; {_PREFIX_HINT}"
        )


class Tapped(Remade):
    """Mixed into the class of an attention that has a tap.

    torch.compile compiles the blocks' common code once, where it compiles block by block, and does
    not look for hooks before it uses that for the next block. It does look at classes.
    """


def add_taps(vit: nn.Module, tap: AttentionTap) -> None:
    stack = tap.site.stack
    if stack.patch_embed is not None:
        vit.get_submodule(stack.patch_embed).register_forward_hook(GridTap(tap.recorder))
    attention = vit.get_submodule(stack.attention)
    attention.register_forward_hook(tap, with_kwargs=True)
    if not isinstance(attention, Tapped):
        remake(attention, Tapped)


def remove_taps(vit: nn.Module, of_wrappers: bool) -> None:
    """Remove what replace_last_attention added, and on request what with_quality did."""
    for module in vit.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, (AttentionTap, GridTap)) and (
                of_wrappers or not hook.recorder.on_demand
            ):
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
        left = any(isinstance(hook, AttentionTap) for hook in module._forward_hooks.values())
        if isinstance(module, Tapped) and not left:
            unmake(module, Tapped)


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _recomputing() -> bool:
    """Whether a backward pass is running: gradient checkpointing calls forward again in it."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
