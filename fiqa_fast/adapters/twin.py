# SPDX-License-Identifier: Apache-2.0
"""A second tree of module objects over the same parameters and buffers."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_M = TypeVar("_M", bound=nn.Module)

# The dictionaries themselves are shared, so that .to() or loading reaches both trees.
_SHARED = ("_parameters", "_buffers", "_non_persistent_buffers_set")


def twin_of(module: _M, memo: dict[int, nn.Module] | None = None) -> _M:
    """Copy the module objects of a tree, not their state.

    Parameters and buffers stay one and the same; hooks, ``training`` flags and submodule tables
    are the twin's own, so that hooks added to it leave the original as it was.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module  # its state is not Python's to share: it stays one and the same
    memo = {} if memo is None else memo
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[return-value]
    twin: _M = object.__new__(module.__class__)  # GraphModule.__new__ makes a class without forward
    memo[id(module)] = twin
    for name, value in vars(module).items():
        own = value
        if name == "_modules":
            own = type(value)(
                (n, None if child is None else twin_of(child, memo)) for n, child in value.items()
            )
        elif name.startswith("_") and "_hooks" in name and isinstance(value, dict):
            own = value.copy()
        twin.__dict__[name] = own
    return twin
