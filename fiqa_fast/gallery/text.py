# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else wrote, made fit for tables and for error lines."""

from __future__ import annotations

import os

__all__ = ["brief", "printable"]


def printable(name: str) -> str:
    """Return a file name as text that every table can hold: bytes that are not UTF-8 escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text.replace("\0", "\\x00")


def brief(value: object, limit: int = 80) -> str:
    """Return a value that somebody else wrote as one short line."""
    text = " ".join(printable(str(value)).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
