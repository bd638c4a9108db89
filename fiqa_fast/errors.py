# SPDX-License-Identifier: Apache-2.0
"""The errors a caller may want to tell apart. Each is a ``ValueError`` with a one-line text."""


class _OneLineError(ValueError):
    """Texts quote names and messages that others made: whatever they hold, one line comes out."""

    def __init__(self, text: object) -> None:
        super().__init__(" ".join(str(text).split()))


class CheckpointError(_OneLineError):
    """A checkpoint or gauge file cannot be used: unreadable, of another model, or ambiguous."""


class ImageError(_OneLineError):
    """An image cannot be used: unreadable, truncated, or of a kind that is not supported."""


class UnsupportedModelError(_OneLineError):
    """A model's structure gives no exact quality; the text says what was found."""
