# SPDX-License-Identifier: Apache-2.0
"""Seconds from the start of a process to its first score, beside those that torch needs to load."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from .children import call, command
from .race import race
from .spread import ratio, spread
from .subject import Subject

__all__ = ["measured"]


def measured(subject: Subject, image: bytes, repeat: int, seconds: float) -> dict[str, Any]:
    """Score one image in new processes, by turns with ones that only import torch."""
    with tempfile.TemporaryDirectory(prefix="fiqa_fast-bench-") as folder:
        path = Path(folder, "image.jpg")
        path.write_bytes(image)
        model = subject.name
        if subject.random:
            model = str(Path(folder, "model.safetensors"))
            architecture = json.dumps(dataclasses.asdict(subject.model.config))
            save_file(subject.model.state_dict(), model, {"architecture": architecture})
        score = command("from fiqa_fast.cli import main; main()", "score", str(path))
        commands = {
            "import torch": command("import torch"),
            "score": [*score, "--model", model, "--threads", str(subject.threads)],
        }
        functions = {name: partial(_start, args) for name, args in commands.items()}
        for function in functions.values():  # what they read is in memory from here on
            function(None)
        times = race(functions, [None], repeat=repeat, seconds=seconds)
    seconds_of = {name: [sum(calls) for calls in rounds] for name, rounds in times.items()}
    return {
        "rounds": len(seconds_of["score"]),
        "seconds": {name: vars(spread(values)) for name, values in seconds_of.items()},
        "score_over_import_torch": vars(ratio(seconds_of["score"], seconds_of["import torch"])),
    }


def _start(args: Sequence[str], _: None) -> None:
    call(args)
