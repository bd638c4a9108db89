# SPDX-License-Identifier: Apache-2.0
"""Graphs for engines that are not torch: exported once, for any batch size, float32, on the CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..entries import PEERS_HINT, Absent
from ..subject import Subject

__all__ = ["Exports", "installed", "quiet"]


def installed(*names: str) -> list[ModuleType]:
    """Import them. Raises :class:`Absent`, in one line, where one is not there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise Absent(f"{' and '.join(missing)} not installed: {PEERS_HINT}")
    try:
        return [importlib.import_module(name) for name in names]
    except Exception as error:
        raise Absent(f"cannot be imported: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and converters have to say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Exports:
    """What engines are given; files of it live as long as this."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._folder = tempfile.TemporaryDirectory(prefix="fiqa_fast-bench-")
        self.program = functools.cache(self._program)
        self.onnx = functools.cache(self._onnx)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def _program(self, graph: str) -> Any:
        """torch's exported program of ``published`` or ``factorised``."""
        if self.subject.device.type != "cpu":
            raise Absent(f"runs on the CPU, not on {self.subject.device}")
        size = self.subject.model.config.img_size
        try:
            module = self.subject.graph(graph, torch.float32)
        except ValueError as error:
            raise Absent(error) from error
        example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        any_size = {"pixels": {0: torch.export.Dim("batch")}}
        with quiet(), torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=any_size)

    def _onnx(self, graph: str) -> Path:
        """The same as an ONNX file, its weights beside it."""
        installed("onnx", "onnxscript")
        program = self.program(graph)
        path = Path(self._folder.name, f"{graph}.onnx")
        with quiet():
            torch.onnx.export(program, (), path, dynamo=True, external_data=True, verbose=False)
        return path
