# SPDX-License-Identifier: Apache-2.0
"""An attention of a model as one callable: its inputs in, means of its logits out."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..hardware import float32_arithmetic
from .custom import HINT, Registered, registered
from .logit_means import LogitMeans, from_input, from_query_key
from .probe import observed_logits, randomised_copy
from .projections import AttentionForm, read_form
from .stack import Stack, attention_of, find_stack

# Arguments of attention forwards that change what is returned, not the logits.
_HARMLESS = (
    "output_attentions", "output_hidden_states", "need_weights", "average_attn_weights",
    "return_dict", "use_cache",
)  # fmt: skip
# Of the mean absolute logit; a term that does not belong shifts the means by a good part of it.
_TOLERANCE, _ROUNDED = 1e-4, 2e-2
_PROBE_TOKENS = 1100
# The arguments that hold a rotary embedding: timm's sines and cosines side by side, or the pair
# (cosines, sines) of transformers' DINOv3.
_ROTARY = ("rope", "position_embeddings")


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """Where the quality comes from. Holds no tensors and no modules."""

    stack: Stack
    attention: str  # its name within the model
    class_name: str
    names: tuple[str, ...]  # parameters of the attention's forward, in order
    form: AttentionForm | None  # None: an adapter's
    custom: Registered | None

    def means(
        self,
        attention: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prefix: int,
        include_prefix: bool,
        maps: tuple[str, ...],
    ) -> LogitMeans:
        """Means of the logits of the attention called with these arguments, without gradient.

        Raises:
            UnsupportedModelError: an argument enters the logits in a way that is not covered.
        """
        device = _first_tensor(args, kwargs).device.type
        with torch.no_grad(), torch.autocast(device_type=device, enabled=False):
            if self.form is None:
                q, k, scale, bias = self._adapted(attention, args, kwargs)
                return from_query_key(q, k, scale, bias, prefix, include_prefix)
            y, rope, mask = self._inputs(args, kwargs)
            form = self.form
            if form.norms or form.grouped or rope is not None:
                q, k = form.query_key(attention, y, rope)
                means = from_query_key(q, k, form.scale, None, prefix, include_prefix)
            else:
                projections = form.projections(attention)
                means = from_input(form, projections, y, prefix, include_prefix, maps)
            return means if mask is None else means.unless_masked(mask)

    @property
    def width(self) -> int | None:
        """All heads' queries side by side; None where only an adapter knows."""
        return None if self.form is None else self.form.num_heads * self.form.head_dim

    @property
    def architecture(self) -> dict[str, int]:
        """What a gauge depends on beside the weights; empty where only an adapter knows."""
        return {} if self.form is None else {"num_heads": self.form.num_heads}

    def tokens(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The attention's input y [B, N, D]."""
        y = self._given(args, kwargs)
        if y.dim() != 3:
            raise UnsupportedModelError(
                f"{self.class_name}: wanted tokens [B, N, D], got {list(y.shape)}; {HINT}"
            )
        return y.transpose(0, 1) if self.form is not None and self.form.sequence_first else y

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        y = self._bound(args, kwargs).get(self.names[0]) if self.names else None
        return y if isinstance(y, Tensor) else _first_tensor(args, kwargs)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = (*self.names, *(f"number {i}" for i in range(len(self.names) + 1, len(args) + 1)))
        return dict(zip(names, args, strict=False)) | kwargs

    def _inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens, rotary embedding, and a mask whose values only an exported graph will know."""
        given = self._given(args, kwargs)
        # MultiheadAttention gets the tokens as keys and values, too.
        may_hold_tokens = (*(self.names[:1] or ("number 1",)), "key", "value")
        rope = mask = None
        for name, value in self._bound(args, kwargs).items():
            if value is None or value is False or name in _HARMLESS:
                continue
            if value is given and name in may_hold_tokens:
                continue
            if name == "rope" and isinstance(value, Tensor):
                rope = value
                continue
            if name == "position_embeddings" and isinstance(value, tuple) and len(value) == 2:
                rope = torch.cat(value[::-1], dim=-1)
                continue
            if name == "attention_mask" and isinstance(value, Tensor) and _exporting():
                mask = value  # transformers leaves out a mask that hides nothing, save in export
                continue
            raise UnsupportedModelError(
                f"{self.class_name}: wanted attention over the tokens alone, got the argument "
                f"{name}, which may change the logits (a mask, a bias, other keys); {HINT}"
            )
        return self.tokens(args, kwargs), rope, mask

    def _adapted(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, float, Tensor | None]:
        assert self.custom is not None
        returned = self.custom.adapter(attention, *args, **kwargs)
        where = f"the adapter of {self.class_name}"
        if not isinstance(returned, tuple) or len(returned) not in (3, 4):
            raise UnsupportedModelError(f"{where}: wanted (q, k, scale) or (q, k, scale, bias)")
        q, k, scale = returned[:3]
        for name, t in (("q", q), ("k", k)):
            if not isinstance(t, Tensor) or t.dim() != 4:
                got = list(t.shape) if isinstance(t, Tensor) else type(t).__name__
                raise UnsupportedModelError(f"{where}: wanted {name} [B, heads, N, d], got {got}")
        bias = returned[3] if len(returned) == 4 else None
        return q.detach(), k.detach(), float(scale), bias


def find_site(vit: nn.Module) -> AttentionSite:
    """Find a model's last self-attention and prove that its logits are understood.

    Raises:
        UnsupportedModelError: not a plain ViT, or its attention computes something else; the text
            says what was found and how to write an adapter.
    """
    stack = find_stack(vit)
    return _site(vit, stack, stack.blocks[-1])


def find_sites(vit: nn.Module) -> list[AttentionSite]:
    """Every block's self-attention, in order, each proven as :func:`find_site` does.

    Raises:
        UnsupportedModelError: as there, or two blocks have one attention between them.
    """
    stack = find_stack(vit)
    sites = [_site(vit, stack, block) for block in stack.blocks]
    if len({id(vit.get_submodule(site.attention)) for site in sites}) < len(sites):
        raise UnsupportedModelError(
            f"{type(vit).__name__}: wanted an attention of its own in each of {len(sites)} blocks, "
            "got one that occurs twice"
        )
    return sites


def _site(vit: nn.Module, stack: Stack, block: str) -> AttentionSite:
    where = attention_of(vit, block)
    attention = vit.get_submodule(where)
    names = tuple(
        p.name
        for p in inspect.signature(attention.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
    custom = registered(attention)
    rotary = next((name for name in _ROTARY if name in names), None)
    form = None if custom is not None else read_form(attention, rotary)
    site = AttentionSite(stack, where, type(attention).__name__, names, form, custom)
    if custom is None:
        _refuse_suspects(site, vit, attention)
    if custom is None or custom.verify:
        # Whatever the process has set, or is doing just now.
        with torch.inference_mode(False), float32_arithmetic("ieee", "cpu"):
            _verify(site, attention)
    return site


def _verify(site: AttentionSite, attention: nn.Module) -> None:
    """Compare the means we would report with those of the logits that forward computes."""
    where = f"{site.class_name} at {site.attention}"
    if any(t.is_meta for t in (*attention.parameters(), *attention.buffers())):
        raise UnsupportedModelError(f"{where}: wanted weights, got meta tensors; load them first")
    generator = torch.Generator("cpu").manual_seed(1)
    positions = site.stack.positions
    tokens = positions if positions is not None and positions <= _PROBE_TOKENS else 7
    prefix = int(getattr(attention, "num_prefix_tokens", 1))  # tokens that are not rotated
    tokens = max(tokens, prefix + 2)
    form = site.form
    width = form.width if form is not None else _width(attention)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device="cpu", dtype=torch.float32)

    first = form is not None and form.sequence_first
    y = random(tokens, 2, width) if first else random(2, tokens, width)
    calls: list[dict[str, Any]] = [{}]
    if form is not None and form.rotary == "rope":
        calls.append({"rope": random(tokens - prefix, 2 * form.head_dim)})
    elif form is not None and form.rotary is not None:
        pair = (random(tokens - prefix, form.head_dim), random(tokens - prefix, form.head_dim))
        calls = [{form.rotary: pair}]
    args = (y, y, y) if isinstance(attention, nn.MultiheadAttention) else (y,)
    for kwargs in calls:
        try:
            twin = randomised_copy(attention)
            logits, rounded = observed_logits(twin, args, kwargs)
            maps = ("patch_map", "query_map")
            means = [site.means(twin, args, kwargs, skip, False, maps) for skip in (0, 1)]
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{where}: wanted q, k and a forward from tokens {list(y.shape)} alone, it failed "
                f"({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
                f"); {HINT}"
            ) from error
        if len(logits) != 1:
            raise UnsupportedModelError(
                f"{where}: wanted one softmax over the logits, got {len(logits)}; {HINT}"
            )
        for skip, ours in enumerate(means):  # with and without the first token
            tolerance = _ROUNDED if rounded else _TOLERANCE
            _compare(where, ours, logits[0][..., skip:, skip:], tolerance)


def _compare(where: str, means: LogitMeans, logits: Tensor, tolerance: float) -> None:
    heads = list(means.head_scores.shape)
    if logits.dim() != 4 or list(logits.shape[:2]) != heads:
        # Some implementations fold the heads into the batch.
        if logits.dim() == 3 and logits.shape[0] == heads[0] * heads[1]:
            logits = logits.unflatten(0, tuple(heads))
        else:
            raise UnsupportedModelError(
                f"{where}: wanted logits [{heads[0]}, {heads[1]}, N, N], got "
                f"{list(logits.shape)}; {HINT}"
            )
    if not logits.isfinite().all():
        raise UnsupportedModelError(
            f"{where}: wanted attention of every token to every token, got a mask; {HINT}"
        )
    pairs = (
        ("head_scores", means.head_scores, logits.mean(dim=(2, 3))),
        ("patch_map", means.key_map, logits.mean(dim=(1, 2))),
        ("query_map", means.query_map, logits.mean(dim=(1, 3))),
    )
    size = logits.abs().mean()
    for name, ours, theirs in pairs:
        assert ours is not None
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > tolerance * size:
            raise UnsupportedModelError(
                f"{where}: its forward computes other logits than scale * q @ k of its "
                f"projections ({name} differs); {HINT}"
            )


# Terms added to the logits may depend on the number of tokens, or reach the attention as an
# argument that says nothing of its origin, and so hide from random tokens.
_SUSPECTS = ("relative_position", "rel_pos", "attention_bias", "argument .keypoint", ".rpe")


def _refuse_suspects(site: AttentionSite, vit: nn.Module, attention: nn.Module) -> None:
    held = [n for n, _ in (*vit.named_parameters(), *vit.named_buffers())]
    held += [f"{site.attention}.{name}" for name, _ in attention.named_children()]
    held += [f"the argument .{name}" for name in site.names]
    for name in held:
        if any(suspect in f".{name}".lower() for suspect in _SUSPECTS):
            raise UnsupportedModelError(
                f"{site.class_name} at {site.attention}: wanted logits of q and k alone, got "
                f"{name}, which looks like a term added to them; {HINT}"
            )


def _width(attention: nn.Module) -> int:
    """Channels of a registered attention's input: those of its first linear layer."""
    for module in attention.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise UnsupportedModelError(
        f"{type(attention).__name__}: its input width is not known, so its adapter cannot be "
        "verified; register it with verify=False"
    )


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModelError("wanted the last attention to be called with tokens, got no tensor")
