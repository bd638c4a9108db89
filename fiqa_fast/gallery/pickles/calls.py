# SPDX-License-Identifier: Apache-2.0
"""What a pickle names, calls and sets: nothing is looked up, called or set, all is understood.

Or else refused by name: only what writes bytes and numpy's arrays and flags is known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fiqa_fast.gallery.pickles.machine import Machine
from fiqa_fast.gallery.pickles.values import Array, Blob, Dtype, Name, PickleContentError
from fiqa_fast.gallery.text import brief

__all__ = ["build", "push_name", "push_stacked_name", "reduce"]


def push_name(machine: Machine, module: str, name: str) -> None:
    """Push what a global name stands for, or refuse it."""
    text = f"{module}.{name}"
    if text not in _CALLS and text not in _NAMES:
        raise PickleContentError(
            f"wanted images and flags alone, got {brief(text)}, which is not run"
        )
    machine.stack.append(Name(text))


def push_stacked_name(machine: Machine) -> None:
    """Push a name whose parts stand on the stack."""
    name, module = machine.pop(), machine.pop()
    push_name(machine, machine.text(module), machine.text(name))


def reduce(machine: Machine) -> None:
    """Push what a call would give."""
    arguments, name = machine.pop(), machine.pop()
    if not isinstance(name, Name) or name.text not in _CALLS or not isinstance(arguments, tuple):
        raise PickleContentError("wanted images and flags alone, got another call")
    machine.stack.append(_CALLS[name.text](machine, *arguments))


def build(machine: Machine) -> None:
    """Give an array or a type its state."""
    state, target = machine.pop(), machine.stack[-1]
    if isinstance(target, Dtype):
        target.order = machine.text(state[1])
        if target.order not in ("<", ">", "|", "="):
            raise ValueError
    elif isinstance(target, Array):
        *_, shape, dtype, _, data = state
        _fill(target, shape, dtype, data)
    else:
        raise PickleContentError("wanted images and flags alone, got the state of an object")


def _fill(array: Array, shape: Any, dtype: Any, data: Any) -> Array:
    if not (isinstance(dtype, Dtype) and isinstance(data, Blob) and isinstance(shape, tuple)):
        raise PickleContentError("wanted arrays of bytes or flags, got one of objects")
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise ValueError
    array.shape, array.dtype, array.data = shape, dtype.numpy(), data
    return array


def _empty_array(_: Machine, kind: object, *__: object) -> Array:
    if not isinstance(kind, Name):
        raise TypeError
    return Array()


def _from_buffer(_: Machine, data: object, dtype: object, shape: object, *__: object) -> Array:
    return _fill(Array(), shape, dtype, data)


def _dtype(machine: Machine, code: object, *_: object) -> Dtype:
    text = machine.text(code)
    if text not in _DTYPES:
        raise PickleContentError(f"wanted arrays of bytes or flags, got the type {brief(text)!r}")
    return Dtype(text)


def _scalar(machine: Machine, dtype: object, data: object) -> Any:
    if not isinstance(dtype, Dtype):
        raise TypeError
    return np.frombuffer(machine.bytes(data), dtype.numpy(), 1)[0].item()


def _same_bytes(_: Machine, text: object = None, *__: object) -> Blob:
    """How Python 3 writes bytes for Python 2: as a call that encodes a text as Latin-1."""
    if text is None:
        return Blob(0, 0, "raw")
    if not isinstance(text, Blob):
        raise TypeError
    return text


_DTYPES = frozenset(("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"))
_NAMES = frozenset(("numpy.ndarray",))
_CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _same_bytes,
    "builtins.bytes": _same_bytes,
    "__builtin__.bytes": _same_bytes,
    "builtins.bytearray": _same_bytes,
    "__builtin__.bytearray": _same_bytes,
    "numpy.dtype": _dtype,
}
for _core in ("numpy.core", "numpy._core"):
    _CALLS[f"{_core}.multiarray._reconstruct"] = _empty_array
    _CALLS[f"{_core}.multiarray.scalar"] = _scalar
    _CALLS[f"{_core}.numeric._frombuffer"] = _from_buffer
