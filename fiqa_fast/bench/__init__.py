# SPDX-License-Identifier: Apache-2.0
"""Images per second of our engines beside their peers', and whether the scores agree.

    Subject (a model and a score) -> entries (who computes it, and how) -> race -> report

All entries of a batch size are in one process at one time and take turns on the same images.
To add an engine, write a file in :mod:`.peers` with a function that lists its entries.
"""
