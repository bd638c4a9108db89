# SPDX-License-Identifier: Apache-2.0
"""Single modules that change class: to one made on the fly, under the name of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

_made: dict[tuple[type, type], type] = {}


class Remade:
    """Base of what is mixed into a module's class by :func:`remake`."""

    @classmethod
    def members(cls, plain: type) -> dict[str, Any]:
        """What the new class has besides the mixin's own."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # No import finds a class made on the fly: pickles and copies name what it was made from.
        reduced: Any = super().__reduce_ex__(protocol)
        return _rebuilt, type(self).__bases__, *reduced[2:]


def remake(module: nn.Module, mixin: type[Remade]) -> None:
    """Give one module a class that derives from ``mixin`` and its own."""
    module.__class__ = _remade(mixin, type(module))


def unmake(module: nn.Module, mixin: type[Remade]) -> None:
    """Give a module that :func:`remake` changed its own class back."""
    made_from, plain = type(module).__bases__
    assert made_from is mixin
    module.__class__ = plain


def _remade(mixin: type[Remade], plain: type) -> Any:
    if (mixin, plain) not in _made:
        # Under its own name: libraries keep registries keyed by it.
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        members = {**names, **mixin.members(plain)}
        _made[mixin, plain] = type(plain.__name__, (mixin, plain), members)
    return _made[mixin, plain]


def _rebuilt(mixin: type[Remade], plain: type) -> Any:
    return object.__new__(_remade(mixin, plain))
