# SPDX-License-Identifier: Apache-2.0
"""What can go wrong around a run; what is wrong with one image is a row of the table instead."""


class InputError(ValueError):
    """The inputs as named cannot be scored: missing, empty, named twice."""


class OutputError(ValueError):
    """The output as named cannot be written: unknown kind, missing folder, not writable."""


class ScoringError(RuntimeError):
    """The scorer itself failed, on images that were decoded without error."""
