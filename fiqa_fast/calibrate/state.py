# SPDX-License-Identifier: Apache-2.0
"""An unfinished fit in a file, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..gallery.atomic import write_atomically
from ..gallery.errors import OutputError
from .gathering import Gathered
from .moments import Moments
from .sample import RowSample

SAVE_SECONDS = 60.0  # what an interruption costs at most, and far more than saving takes
_COUNTS = ("chunks", "images", "unread", "first_error", "pixels")


class StateFile:
    """The hidden file beside ``output`` that holds an unfinished fit.

    ``plan`` is everything that decides the result, as JSON; a state of another plan is refused.
    """

    def __init__(self, output: str | Path, plan: Mapping[str, Any]) -> None:
        target = Path(os.path.realpath(output))
        self.path = target.with_name(f".{target.name}.unfinished")
        self.plan = json.loads(json.dumps(plan))
        self._saved = time.monotonic()

    def load(self) -> Gathered | None:
        """The state, or None where there is none.

        Raises:
            OutputError: it belongs to another fit, or is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies, which lie where tensors of torch's own do: on some processors the order of
                # a product's additions depends on that, and then its last bits.
                tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
            other = differences(self.plan, json.loads(metadata["plan"]))
            if other:
                raise OutputError(
                    f"{self.path}: an unfinished fit of other settings ({other}); repeat its "
                    "command to finish it, or start anew with --overwrite"
                )
            counts = json.loads(metadata["counts"])
            rows = [tensors[f"{name}.{kind}"] for name, kind in _parts()]
            fitting, held_back = Moments(*rows[:3]), Moments(*rows[3:])
            fitting.rows, held_back.rows = counts["rows"]
            return Gathered(
                RowSample(tensors["sample.lots"], tensors["sample.rows"]),
                fitting,
                held_back,
                **{name: counts[name] for name in _COUNTS},
            )
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{self.path}: a damaged unfinished fit ({type(error).__name__}); start anew with "
                "--overwrite"
            ) from None

    def save(self, gathered: Gathered) -> None:
        """Write the state, if it is time."""
        if time.monotonic() - self._saved < SAVE_SECONDS or gathered.fitting is None:
            return
        assert gathered.held_back is not None
        tensors: dict[str, torch.Tensor] = {
            "sample.lots": gathered.sample.lots,
            "sample.rows": gathered.sample.rows,
        }
        for name, kind in _parts():
            tensors[f"{name}.{kind}"] = getattr(getattr(gathered, name), kind)
        # The origin is one tensor of both moments, and a file holds every tensor once.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        counts: dict[str, Any] = {name: getattr(gathered, name) for name in _COUNTS}
        counts["rows"] = [gathered.fitting.rows, gathered.held_back.rows]
        metadata = {"plan": json.dumps(self.plan), "counts": json.dumps(counts)}
        write_atomically(self.path, save(tensors, metadata))
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Forget the state, if there is one."""
        self.path.unlink(missing_ok=True)


def differences(ours: Mapping[str, Any], theirs: Any) -> str:
    """Names of the settings in which two plans differ."""
    theirs = theirs if isinstance(theirs, dict) else {}
    return ", ".join(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))


def _parts() -> list[tuple[str, str]]:
    return [
        (name, kind)
        for name in ("fitting", "held_back")
        for kind in ("origin", "total", "products")
    ]
