# SPDX-License-Identifier: Apache-2.0
"""What decides the values of a table, and whether two records of it agree.

``settings`` decide the values and have to agree. ``builds`` say what computed them: another
version, library or processor may round differently, which is told and not refused.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fiqa_fast.gallery.atomic import write_atomically
from fiqa_fast.gallery.errors import OutputError

__all__ = ["RECORD_NAME", "Record", "differences", "this_build"]

RECORD_NAME = "record.json"


@dataclass
class Record:
    """What an unfinished output is, as JSON in its folder."""

    settings: dict[str, Any]
    builds: list[dict[str, str]] = field(default_factory=list)
    extends: bool = False  # the table that is in place, with new rows
    replaces: bool = False  # what is in place, if anything is
    retries: bool = False  # failed rows of the table in place are scored again

    def description(self) -> dict[str, Any]:
        """Return what the finished table says of its scores."""
        version = {"version": self.builds[-1]["fiqa_fast"]} if self.builds else {}
        return {**self.settings, **version, "builds": self.builds}

    @staticmethod
    def settings_of(description: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings in what a finished table says."""
        return {k: v for k, v in description.items() if k not in ("version", "builds")}

    def save(self, path: str) -> None:
        """Write it, whole or not at all. Raises :class:`OutputError`."""
        write_atomically(path, json.dumps(vars(self), indent=1, sort_keys=True).encode())

    @staticmethod
    def load(path: str) -> Record | None:
        """Read it; None where there is none. Raises :class:`OutputError` for a damaged one."""
        try:
            with open(path, "rb") as file:
                record = Record(**json.load(file))
            if not record._is_sound():
                raise ValueError
            return record
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{path}: the record of an unfinished run is damaged ({type(error).__name__}); "
                "start anew with --overwrite"
            ) from None

    def _is_sound(self) -> bool:
        flags = (self.extends, self.replaces, self.retries)
        return (
            isinstance(self.settings, dict)
            and isinstance(self.builds, list)
            and all(isinstance(build, dict) and "fiqa_fast" in build for build in self.builds)
            and all(isinstance(flag, bool) for flag in flags)
        )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Name the settings in which two records differ: ``exit 8, not 4``."""
    ours = json.loads(json.dumps(ours))  # as they come back from a file
    lines = []
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name), theirs.get(name)
        if mine != other:
            lines.append(f"{name.replace('_', ' ')} {_short(mine)}, not {_short(other)}")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]  # a hash
    return text if len(text) <= 100 else text[:97] + "..."


def this_build(device: str, engine_note: str = "") -> dict[str, str]:
    """Say what computes here: versions, the processor's or GPU's kind, a scorer's engine note."""
    import torch

    import fiqa_fast

    if device == "cuda":
        processor = torch.cuda.get_device_name()
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        if "amx_bf16" in _flags():
            processor += " AMX"
    build = {
        "fiqa_fast": fiqa_fast.__version__,
        "torch": str(torch.__version__),
        "processor": processor,
    }
    return {**build, "engine_note": engine_note} if engine_note else build


def _flags() -> str:
    if not os.path.exists("/proc/cpuinfo"):
        return ""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line for line in file if line.startswith("flags")), "")
