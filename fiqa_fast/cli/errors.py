# SPDX-License-Identifier: Apache-2.0
"""Which exceptions are the user's to mend, and the one line that says how."""

from __future__ import annotations

import click

__all__ = ["PIPE_CLOSED", "STRICT", "USAGE", "explain"]

STRICT = 1  # --strict, and some images could not be scored
USAGE = 2  # every error with a line of its own
PIPE_CLOSED = 141  # what a shell reports for a program that a closed pipe ends


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can mend; None for a mistake of ours."""
    text = _text(error)
    return None if text is None else " ".join(text.split())


def _text(error: BaseException) -> str | None:
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "fiqa-fast"
        return f"{error.format_message().rstrip('.')} (see {command} --help)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, MemoryError):
        return "out of memory; lower --batch-size or --workers"
    if isinstance(error, OSError):
        if error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        return str(error)
    from fiqa_fast.errors import CheckpointError, ImageError, UnsupportedModelError
    from fiqa_fast.gallery.errors import InputError, OutputError, ScoringError

    if isinstance(error, ScoringError) and "out of memory" in str(error):
        return f"{error}; lower --batch-size"
    ours = (CheckpointError, ImageError, UnsupportedModelError, InputError, OutputError)
    return str(error) if isinstance(error, (*ours, ScoringError)) else None
