# SPDX-License-Identifier: Apache-2.0
"""The errors a caller may want to tell apart. Each is a ``ValueError`` with a one-line text."""


class CheckpointError(ValueError):
    """A checkpoint or gauge file cannot be used: unreadable, of another model, or ambiguous."""


class ImageError(ValueError):
    """An image cannot be used: unreadable, truncated, or of a kind that is not supported."""


class UnsupportedModelError(ValueError):
    """A model's structure gives no exact quality; the text says what was found."""
