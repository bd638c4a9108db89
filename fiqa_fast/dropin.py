# SPDX-License-Identifier: Apache-2.0
"""Quality from a ViT that somebody else wrote, in the forward pass it makes anyway.

The quality is ATTN-FIQA (arXiv 2604.22841), the mean pre-softmax logit of the last attention. A
hook reads the attention's input and leaves the attention alone, so the model's own output is what
it was, whichever attention kernel runs. ``docs/dropin.md`` has examples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .adapters.custom import register_attention
from .adapters.remade import Remade, remake
from .adapters.site import AttentionSite, find_site, find_sites
from .adapters.taps import (
    AttentionTap,
    Pass,
    Recorder,
    add_taps,
    pooled_taps,
    remove_taps,
)
from .adapters.twin import twin_of
from .errors import UnsupportedModelError
from .models.gauge import Gauge, GaugeRow, check_gauge, load_gauge
from .options import TOKENS, check_name, checked_outputs

__all__ = ["last_quality", "register_attention", "replace_last_attention", "with_quality"]

OUTPUTS = ("score", "patch_map", "query_map", "head_scores", "exit_scores")
_M = TypeVar("_M", bound=nn.Module)


class QualityOutputs(Remade):
    """Mixed into a twin's class, whose ``forward`` then returns ``(output, *quality)``."""

    _fiqa_recorder: Recorder

    @classmethod
    def members(cls, plain: type[nn.Module]) -> dict[str, Any]:
        return {"forward": _quality_forward(plain)}


def _quality_forward(cls: type[nn.Module]) -> Callable[..., tuple[Any, ...]]:
    plain = cls.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        current = self._fiqa_recorder.current = Pass()
        try:
            output = plain(self, *args, **kwargs)
        finally:
            self._fiqa_recorder.current = None
        if current.values is None:
            raise UnsupportedModelError(
                "wanted the last attention to run as a module in forward, it did not: it is "
                "called by another route, or a wrapper took its place"
            )
        return (output, *current.values)

    # Exporters and trainers ask for the names of the arguments.
    forward.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    forward.__doc__ = plain.__doc__
    return forward


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
    - ``head_scores`` [B, H]: mean logit of each head;
    - ``exit_scores`` [B, L]: the score that every block alone would give, the last one's last.

    Maps are [B, N] where the patch grid is not known or patches are dropped in training.

    Args:
        vit: timm VisionTransformer or Eva, Hugging Face ViT, DeiT, DINOv2 (with registers),
            DINOv3, CLIP or SigLIP vision, torchvision ``vit_*``, CVLface and arcface_torch ViTs,
            :class:`FaceViT`, copies of their code, and whatever :func:`register_attention` knows.
            They are recognised by structure, and their attention is checked on random tokens.
            Compile it afterwards.
        outputs: any of score, patch_map, query_map, head_scores, exit_scores, in the order wanted.
            The last takes hooks on every block's attention, and proves every one.
        tokens: ``"patch"`` means over the patch tokens; ``"all"`` over class, register and other
            tokens, too, as queries and as keys. Maps show the patches in either case, so that the
            mean of a map is the score for ``"patch"`` alone.
        gauge: a :class:`Gauge` or gauge file fitted on this very model (:func:`fit_gauge`); it
            calibrates score, patch_map and exit_scores. ``None`` gives published values.

    Raises:
        UnsupportedModelError: the structure, or an argument of a later forward pass, gives no
            exact quality.
        CheckpointError: the gauge is unreadable or of another model.
        ValueError: outputs or tokens are not known, or ``"all"`` tokens are to be calibrated.
    """
    names = checked_outputs(outputs, OUTPUTS)
    check_name("tokens", tokens, TOKENS)
    twin = plain_twin(vit)
    if vit._forward_hooks:
        raise UnsupportedModelError(
            f"wanted no forward hooks on the model itself, which would get (output, *quality), got "
            f"{len(vit._forward_hooks)}: add quality first"
        )
    sites = find_sites(twin) if "exit_scores" in names else [find_site(twin)]
    rows = _gauge_rows(gauge, vit, sites[-1], tokens)
    recorder = Recorder(on_demand=True)
    last = AttentionTap(sites[-1], names, tokens, rows, recorder)
    add_taps(twin, {**pooled_taps(sites[:-1], tokens, recorder), sites[-1].attention: last})
    remake(twin, QualityOutputs)
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
    check_name("tokens", tokens, TOKENS)
    _refuse_wrappers(vit)
    site = find_site(_without_taps(vit))
    rows = _gauge_rows(gauge, vit, site, tokens)
    remove_taps(vit, of_wrappers=False)
    recorder = Recorder(on_demand=False)
    tap = AttentionTap(site, ("score", "patch_map"), tokens, rows, recorder)
    add_taps(vit, {site.attention: tap})
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
        for hook in module._forward_hooks.values():
            if isinstance(hook, AttentionTap) and not hook.recorder.on_demand:
                if hook.recorder.last is None:
                    raise RuntimeError(
                        "last_quality wants a forward pass first, got none since "
                        "replace_last_attention, or one of a part of the model: call vit(x)"
                    )
                score, patch_map = hook.recorder.last
                return score, patch_map
    raise RuntimeError(
        f"last_quality wants a model changed by fiqa_fast.replace_last_attention, got a "
        f"{type(vit).__name__} that was not"
    )


def plain_twin(vit: _M) -> _M:
    """A twin that quality can be added to, without what was added to the model in place.

    Raises:
        UnsupportedModelError: the model is wrapped, compiled, or has quality already.
    """
    _refuse_wrappers(vit)
    if any(isinstance(module, QualityOutputs) for module in vit.modules()):
        raise UnsupportedModelError(
            "wanted a plain model, got one that with_quality returned, or one around it"
        )
    return _without_taps(vit)


def _refuse_wrappers(vit: nn.Module) -> None:
    if not isinstance(vit, nn.Module):
        raise UnsupportedModelError(f"wanted a torch.nn.Module, got {type(vit).__name__}")
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(vit, (*parallel, torch.jit.ScriptModule)):
        raise UnsupportedModelError(
            f"wanted the model itself, got a {type(vit).__name__}: add quality first, then wrap"
        )
    for name, module in vit.named_modules():
        # What is compiled already calls the original's modules, or leaves new hooks out.
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise UnsupportedModelError(
                f"wanted a model that is not compiled, got a compiled {name or 'model'}: add "
                "quality first, then compile"
            )
    if "forward" in vars(vit):
        raise UnsupportedModelError(
            f"wanted the class's own forward, got a {type(vit).__name__} whose forward was "
            "replaced on the instance: add quality before"
        )


def _gauge_rows(
    gauge: Gauge | str | Path | None, vit: nn.Module, site: AttentionSite, tokens: str
) -> tuple[GaugeRow, ...] | None:
    """One for every block."""
    if gauge is None:
        return None
    if tokens == "all" and site.stack.prefix_tokens:
        raise ValueError(
            'a gauge belongs to the mean over the patches: wanted tokens="patch" with it, got "all"'
        )
    gauge = gauge if isinstance(gauge, Gauge) else load_gauge(gauge)
    width = gauge.query_weight.shape[1] if site.width is None else site.width
    check_gauge(gauge, vit, site.stack.depth, width, site.architecture)
    return tuple(gauge.row(block) for block in range(1, site.stack.depth + 1))


def _without_taps(vit: _M) -> _M:
    """A twin of the model as it was before any quality was added in place."""
    twin = twin_of(vit)
    remove_taps(twin, of_wrappers=True)
    return twin
