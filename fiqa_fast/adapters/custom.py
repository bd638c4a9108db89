# SPDX-License-Identifier: Apache-2.0
"""Adapters that users write for attentions of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

HINT = (
    "for an attention of your own write @fiqa_fast.register_attention(YourAttention) above "
    "def adapter(attention, y): return q, k, scale, with q and k [B, heads, tokens, d]"
)

Adapter = Callable[..., tuple[Any, ...]]
_AdapterT = TypeVar("_AdapterT", bound=Adapter)


@dataclasses.dataclass(frozen=True)
class Registered:
    adapter: Adapter
    prefix_tokens: int | None
    verify: bool


_REGISTRY: dict[type[nn.Module], Registered] = {}


def register_attention(
    attention: type[nn.Module], *, prefix_tokens: int | None = None, verify: bool = True
) -> Callable[[_AdapterT], _AdapterT]:
    """Teach :func:`fiqa_fast.with_quality` an attention class. Decorates the adapter::

        @fiqa_fast.register_attention(MyAttention)
        def adapter(attention, y): return attention.q(y), attention.k(y), attention.scale

    The adapter is called with the module and what its forward is called with. It returns q and k
    [B, H, N, d], any floating dtype, as they enter the dot product, and the logits' factor (a
    float); optionally a fourth value, the bias added to the logits, that broadcasts to
    [B, H, N, N].

    Args:
        attention: the class; an adapter holds for its subclasses, too.
        prefix_tokens: how many tokens before the patches the model has (class, register tokens);
            None counts the parameters with such names.
        verify: compare with the logits that the module's forward takes the softmax of, on random
            tokens, when a model is wrapped. Switch it off only where that forward needs more than
            its first argument or runs a fused kernel of its own.

    Raises:
        ValueError: ``attention`` is not a class of modules.
    """
    if not (isinstance(attention, type) and issubclass(attention, nn.Module)):
        raise ValueError(f"attention must be a subclass of torch.nn.Module, got {attention!r}")

    def decorate(adapter: _AdapterT) -> _AdapterT:
        _REGISTRY[attention] = Registered(adapter, prefix_tokens, verify)
        return adapter

    return decorate


def registered(module: nn.Module) -> Registered | None:
    """The adapter for this module: of its class, or else of its nearest registered base."""
    for base in type(module).__mro__:
        if base in _REGISTRY:
            return _REGISTRY[base]
    return None
