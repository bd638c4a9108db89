# SPDX-License-Identifier: Apache-2.0
"""Scoring galleries of any size: sources -> decode -> scorer -> sink, in one direction.

A source yields items in a fixed order, the runner decodes them ahead of the scorer and hands
rows to a sink in that order. Each stage knows the next one by its interface only, so that a new
container is one more source and a new table one more sink.
"""

from fiqa_fast.gallery.errors import InputError, OutputError, ScoringError
from fiqa_fast.gallery.runner import Summary, run
from fiqa_fast.gallery.sinks import Rows, Sink, open_sink
from fiqa_fast.gallery.sources import Item, Source, open_sources
from fiqa_fast.gallery.turns import fills_the_cores

__all__ = [
    "InputError",
    "Item",
    "OutputError",
    "Rows",
    "ScoringError",
    "Sink",
    "Source",
    "Summary",
    "fills_the_cores",
    "open_sink",
    "open_sources",
    "run",
]
