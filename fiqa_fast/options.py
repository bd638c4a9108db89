# SPDX-License-Identifier: Apache-2.0
"""Options that Scorer and the drop-in have in common, checked in the same words."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

TOKENS = ("patch", "all")


def checked_outputs(outputs: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """``outputs`` as a tuple, or ValueError if it is empty or names none of the ``known``."""
    # A tensor calls itself iterable, whatever its dimensions.
    if isinstance(outputs, (str, bytes, Tensor)) or not isinstance(outputs, Iterable):
        raise ValueError(f'outputs must be a sequence such as ("score",), got {outputs!r}')
    outputs = tuple(outputs)
    unknown = [name for name in outputs if name not in known]
    if unknown or not outputs:
        raise ValueError(
            f"outputs must name some of {', '.join(known)}; got "
            f"{repr(unknown[0]) if unknown else 'none'}"
        )
    return outputs


def check_name(option: str, value: object, known: Iterable[str], more: str = "") -> None:
    """Whether it is one of ``known``; an array compares element by element, so strings only."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}{more}, got {value!r}")
