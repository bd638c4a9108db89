# SPDX-License-Identifier: Apache-2.0
"""Options that Scorer and the drop-in have in common, checked in the same words."""

from __future__ import annotations

from collections.abc import Iterable

TOKENS = ("patch", "all")


def checked_outputs(outputs: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """``outputs`` as a tuple, or ValueError if it is empty or names none of the ``known``."""
    if isinstance(outputs, str) or not isinstance(outputs, Iterable):
        raise ValueError(f'outputs must be a sequence such as ("score",), got {outputs!r}')
    outputs = tuple(outputs)
    unknown = [name for name in outputs if name not in known]
    if unknown or not outputs:
        raise ValueError(
            f"outputs must name some of {', '.join(known)}; got "
            f"{repr(unknown[0]) if unknown else 'none'}"
        )
    return outputs


def check_tokens(tokens: str) -> None:
    if tokens not in TOKENS:
        raise ValueError(f"tokens must be one of {', '.join(TOKENS)}, got {tokens!r}")
