# SPDX-License-Identifier: Apache-2.0
"""Quality from a ViT that somebody else wrote, in the forward pass it makes anyway.

The quality is ATTN-FIQA (arXiv 2604.22841), the mean pre-softmax logit of the last attention. A
hook reads the attention's input and leaves the attention alone, so the model's own output is what
it was, whichever attention kernel runs. ``docs/dropin.md`` has examples.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import UnsupportedModelError
from .models.adapters.custom import register_attention
from .models.adapters.site import AttentionSite, find_site
from .models.adapters.twin import twin_of
from .models.gauge import Gauge, GaugeRow, check_gauge, load_gauge
from .options import check_tokens, checked_outputs

__all__ = ["last_quality", "register_attention", "replace_last_attention", "with_quality"]

OUTPUTS = ("score", "patch_map", "query_map", "head_scores")
_M = TypeVar("_M", bound=nn.Module)


class _Slots(threading.local):
    """What one forward pass in one thread has seen so far."""

    armed = False
    grid: tuple[int, int, int] | None = None  # images, rows, columns
    values: tuple[Tensor, ...] | None = None


class Recorder:
    """Carries values from the hooks to the caller. A copy of it starts empty."""

    def __init__(self, on_demand: bool) -> None:
        self.on_demand = on_demand  # record only between arm and collect
        self.slots = _Slots()
        self.last: tuple[Tensor, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, (self.on_demand,)


class GridTap:
    """Forward hook of the patch convolution: how many patches there are, in which grid."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        slots = self.recorder.slots
        if slots.armed or not self.recorder.on_demand:
            slots.grid = (output.shape[0], output.shape[-2], output.shape[-1])


class AttentionTap:
    """Forward pre-hook of the last attention: computes the quality from what it is given."""

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

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder = self.recorder
        if recorder.on_demand:
            if not recorder.slots.armed:
                return  # a submodule was called on its own, or a checkpoint recomputes it
            if recorder.slots.values is not None:
                raise UnsupportedModelError(
                    f"{self.site.class_name}: wanted the last attention to run once per forward "
                    "pass, it ran twice"
                )
            recorder.slots.values = self._measure(module, args, kwargs)
        elif not _exporting() and not _recomputing():
            recorder.last = self._measure(module, args, kwargs)

    def _measure(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        prefix = self.site.stack.prefix_tokens
        y = self.site.tokens(args, kwargs)
        side = self._side(module, y, prefix)
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

    def _side(self, module: nn.Module, y: Tensor, prefix: int) -> tuple[int, int] | None:
        """The patch grid, checked against the tokens that came."""
        batch, count = y.shape[0], y.shape[1]
        if count <= prefix:
            raise UnsupportedModelError(
                f"{self.site.class_name}: wanted {prefix} prefix tokens and patches, got {count} "
                "tokens"
            )
        grid = self.recorder.slots.grid
        if grid is None:
            return None
        images, rows, columns = grid
        if batch == images and count - prefix == rows * columns:
            return rows, columns
        dropped = self.site.stack.drops_patches and module.training
        if dropped and batch == images and count - prefix < rows * columns:
            return None
        raise UnsupportedModelError(
            f"{self.site.class_name}: wanted {images} x ({prefix} prefix + {rows} x {columns} "
            f"patch) tokens, got {batch} x {count}; tell the prefix by "
            "fiqa_fast.register_attention(..., prefix_tokens=...)"
        )


class QualityOutputs:
    """Mixed into a twin's class, whose ``forward`` then returns ``(output, *quality)``."""

    _fiqa_recorder: Recorder

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made on the fly: pickles and copies name the class it was made from.
        reduced: Any = super().__reduce_ex__(protocol)
        return _rebuild, (_plain_class(type(self)),), *reduced[2:]


def _quality_forward(cls: type[nn.Module]) -> Callable[..., tuple[Any, ...]]:
    plain = cls.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        slots = self._fiqa_recorder.slots
        slots.values, slots.grid, slots.armed = None, None, True
        try:
            output = plain(self, *args, **kwargs)
            values = slots.values
        finally:
            slots.values, slots.grid, slots.armed = None, None, False
        if values is None:
            raise UnsupportedModelError(
                "wanted the last attention to run as a module in forward, it did not: it is "
                "called by another route, or a wrapper took its place"
            )
        return (output, *values)

    # Exporters and trainers ask for the names of the arguments.
    forward.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    forward.__doc__ = plain.__doc__
    return forward


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _quality_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _classes:
        # Under its own name: libraries keep registries keyed by it.
        members = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "forward": _quality_forward(cls),
        }
        _classes[cls] = type(cls.__name__, (QualityOutputs, cls), members)
    return _classes[cls]


def _plain_class(cls: Any) -> Any:
    return next(base for base in cls.__mro__[1:] if base is not QualityOutputs)


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    made = _quality_class(cls)
    return made.__new__(made)


def with_quality(
    vit: _M,
    outputs: Sequence[str] = ("score",),
    tokens: str = "patch",
    gauge: Gauge | str | Path | None = None,
) -> _M:
    """A model over the same parameters whose forward returns ``(output, *quality)``.

    ``output`` is what ``vit`` returns, computed by the same kernels, differentiable as before.
    ``vit`` itself is left as it is; ``state_dict`` keys, class and attributes are its own. The
    quality (ATTN-FIQA, arXiv 2604.22841) is float32, detached, whatever dtype or autocast is used:

    - ``score`` [B]: mean pre-softmax logit of the last attention, over heads, queries and keys;
    - ``patch_map`` [B, gh, gw]: mean logit that each patch receives as a key;
    - ``query_map`` [B, gh, gw]: mean logit of each patch as a query;
    - ``head_scores`` [B, H]: mean logit of each head.

    Maps are [B, N] where the patch grid is not known or patches are dropped in training.

    Args:
        vit: timm VisionTransformer or Eva, Hugging Face ViT, DeiT, DINOv2 (with registers), CLIP
            or SigLIP vision, torchvision ``vit_*``, CVLface and arcface_torch ViTs,
            :class:`FaceViT`, copies of their code, and whatever :func:`register_attention` knows.
            They are recognised by structure, and their attention is checked on random tokens.
        outputs: any of score, patch_map, query_map, head_scores, in the order wanted.
        tokens: ``"patch"`` means over the patch tokens; ``"all"`` over class, register and other
            tokens, too, as queries and as keys. Maps show the patches in either case, so that the
            mean of a map is the score for ``"patch"`` alone.
        gauge: a :class:`Gauge` or gauge file fitted on this very model; it calibrates score and
            patch_map. ``None`` gives published values.

    Raises:
        UnsupportedModelError: the structure, or an argument of a later forward pass, gives no
            exact quality.
        CheckpointError: the gauge is unreadable or of another model.
        ValueError: outputs or tokens are not known.
    """
    names = checked_outputs(outputs, OUTPUTS)
    check_tokens(tokens)
    if isinstance(vit, QualityOutputs):
        raise UnsupportedModelError("wanted a plain model, got one that with_quality returned")
    _refuse_wrappers(vit)
    twin = _without_taps(vit)
    site = find_site(twin)
    row = _gauge_row(gauge, vit, site)
    recorder = Recorder(on_demand=True)
    _add_taps(twin, AttentionTap(site, names, tokens, row, recorder))
    twin.__class__ = _quality_class(type(twin))  # type: ignore[assignment]
    twin.__dict__["_fiqa_recorder"] = recorder
    return twin


def replace_last_attention(
    vit: _M, tokens: str = "patch", gauge: Gauge | str | Path | None = None
) -> _M:
    """Make ``vit`` measure quality in every forward pass, in place; returns ``vit``.

    ``vit(x)`` returns what it returned before; :func:`last_quality` then gives the quality of that
    pass. Doing it again replaces the options. Arguments, errors and restrictions are those of
    :func:`with_quality`. ``torch.export`` keeps the model's output and drops the quality.
    """
    check_tokens(tokens)
    _refuse_wrappers(vit)
    site = find_site(_without_taps(vit))
    row = _gauge_row(gauge, vit, site)
    _remove_taps(vit, of_wrappers=False)
    recorder = Recorder(on_demand=False)
    _add_taps(vit, AttentionTap(site, ("score", "patch_map"), tokens, row, recorder))
    return vit


def last_quality(vit: nn.Module) -> tuple[Tensor, Tensor]:
    """``(score [B], patch_map [B, gh, gw])`` of the last forward pass, float32, detached.

    Of the last pass to reach the attention, in whichever thread: use :func:`with_quality` where
    several threads share a model. ``vit`` may be wrapped by DDP or ``torch.compile``.

    Raises:
        RuntimeError: the model was not changed by :func:`replace_last_attention`, or no forward
            pass has been made since.
    """
    for module in vit.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, AttentionTap) and not hook.recorder.on_demand:
                if hook.recorder.last is None:
                    raise RuntimeError(
                        "last_quality wants a forward pass first, got none since "
                        "replace_last_attention: call vit(x)"
                    )
                score, patch_map = hook.recorder.last
                return score, patch_map
    raise RuntimeError(
        f"last_quality wants a model changed by fiqa_fast.replace_last_attention, got a "
        f"{type(vit).__name__} that was not"
    )


def _refuse_wrappers(vit: nn.Module) -> None:
    if not isinstance(vit, nn.Module):
        raise UnsupportedModelError(f"wanted a torch.nn.Module, got {type(vit).__name__}")
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(vit, (*parallel, torch.jit.ScriptModule)) or hasattr(vit, "_orig_mod"):
        raise UnsupportedModelError(
            f"wanted the model itself, got a {type(vit).__name__}: add quality first, then "
            "compile or wrap"
        )
    if "forward" in vars(vit):
        raise UnsupportedModelError(
            f"wanted the class's own forward, got a {type(vit).__name__} whose forward was "
            "replaced on the instance: add quality before"
        )


def _gauge_row(
    gauge: Gauge | str | Path | None, vit: nn.Module, site: AttentionSite
) -> GaugeRow | None:
    if gauge is None:
        return None
    gauge = gauge if isinstance(gauge, Gauge) else load_gauge(gauge)
    form = site.form
    width = gauge.query_weight.shape[1] if form is None else form.num_heads * form.head_dim
    check_gauge(gauge, vit, site.stack.depth, width)
    return gauge.row(site.stack.depth)


def _add_taps(vit: nn.Module, tap: AttentionTap) -> None:
    stack = tap.site.stack
    if stack.patch_conv is not None:
        vit.get_submodule(stack.patch_conv).register_forward_hook(GridTap(tap.recorder))
    vit.get_submodule(stack.attention).register_forward_pre_hook(tap, with_kwargs=True)


def _without_taps(vit: _M) -> _M:
    """A twin of the model as it was before any quality was added in place."""
    twin = twin_of(vit)
    _remove_taps(twin, of_wrappers=True)
    return twin


def _remove_taps(vit: nn.Module, of_wrappers: bool) -> None:
    """Remove what replace_last_attention added, and on request what with_quality did."""
    for module in vit.modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(table.items()):
                if isinstance(hook, (AttentionTap, GridTap)) and (
                    of_wrappers or not hook.recorder.on_demand
                ):
                    del table[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _recomputing() -> bool:
    """Whether a backward pass is running: gradient checkpointing calls forward again in it."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
