# SPDX-License-Identifier: Apache-2.0
"""Code in an interpreter of its own, of this same installation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

__all__ = ["call", "command"]


def command(code: str, *args: str) -> list[str]:
    """A command that runs ``code`` with the same places for modules, in the same order."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}", *args]


def call(args: Sequence[str], given: str = "") -> str:
    """Run it and return what it wrote. Raises RuntimeError, in one line, where it fails."""
    done = subprocess.run(args, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"a child process ended with status {done.returncode}: {lines[-1]}")
    return done.stdout
