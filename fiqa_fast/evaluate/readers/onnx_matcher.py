# SPDX-License-Identifier: Apache-2.0
"""A matcher in ONNX, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fiqa_fast.errors import ImageError
from fiqa_fast.evaluate.readers.files import StrPath, brief
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import printable
from fiqa_fast.images import describe, open_regular

__all__ = ["MatcherInput", "OnnxMatcher", "parse_matcher_input"]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class MatcherInput:
    """What a matcher is fed: ``(pixel - mean) / scale`` with pixels 0..255, in this order.

    ``size`` is the side of the images where the model takes any.
    """

    colour: str = "rgb"
    mean: float = 127.5
    scale: float = 127.5
    size: int = 112

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for values without a meaning."""
        if self.colour not in ("rgb", "bgr"):
            raise InputError(f"--matcher-input: wanted colour=rgb or bgr, got {brief(self.colour)}")
        if not (math.isfinite(self.mean) and math.isfinite(self.scale) and self.scale):
            raise InputError(
                "--matcher-input: wanted finite numbers as mean and scale, and a scale other than "
                f"0, got {self.mean} and {self.scale}"
            )
        if not 1 <= self.size <= 4096:
            raise InputError(f"--matcher-input: wanted a size from 1 to 4096, got {self.size}")


def parse_matcher_input(text: str) -> MatcherInput:
    """Read ``colour=bgr,mean=127.5,scale=128,size=112``, any of them; ``bgr`` alone will do."""
    kinds = {"colour": str, "mean": float, "scale": float, "size": int}
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip().lower() for piece in part.partition("="))
        if not equals and key in ("rgb", "bgr"):
            key, value = "colour", key
        key = "colour" if key == "color" else key
        if key not in kinds or key in values:
            raise InputError(
                f"--matcher-input: wanted {', '.join(kinds)}, each once as NAME=VALUE, got "
                f"{brief(part)!r}"
            )
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise InputError(f"--matcher-input: {brief(part)!r} cannot be read") from None
    return MatcherInput(**values)


class OnnxMatcher:
    """An ONNX model with one image input [., 3, S, S] and an embedding [., E] as output."""

    def __init__(
        self, path: StrPath, inputs: MatcherInput | None = None, threads: int | None = None
    ) -> None:
        """Open the model and try it on one grey image.

        The embedding is the first two-dimensional float output. ``threads`` are ONNX Runtime's.
        Raises :class:`InputError` without ONNX Runtime and for any other kind of model.
        """
        self._name = printable(os.fspath(path))
        self._input = MatcherInput() if inputs is None else inputs
        self._session = _open(path, self._name, threads)
        fed = self._session.get_inputs()
        if len(fed) != 1:
            names = brief(", ".join(node.name for node in fed))
            raise InputError(f"{self._name}: wanted a model with one input, got {names or 'none'}")
        self._feed = fed[0].name
        if fed[0].type not in _FLOATS:
            raise InputError(f"{self._name}: wanted an input of floats, got {fed[0].type}")
        self._dtype = _FLOATS[fed[0].type]
        self.size, self._one_by_one = self._read_shape(list(fed[0].shape))
        self._output = self._find_output()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 [B, E] for uint8 RGB [B, 3, size, size]."""
        planes = images.numpy()
        if self._input.colour == "bgr":
            planes = planes[:, ::-1]
        fed = (planes.astype(np.float32) - np.float32(self._input.mean)) / np.float32(
            self._input.scale
        )
        fed = np.ascontiguousarray(fed, self._dtype)
        parts = np.split(fed, len(fed)) if self._one_by_one else [fed]
        vectors = [self._run([self._output], part)[0] for part in parts]
        return torch.from_numpy(np.concatenate(vectors).astype(np.float32))

    def _run(self, outputs: list[str] | None, fed: npt.NDArray[Any]) -> list[Any]:
        try:
            return list(self._session.run(outputs, {self._feed: fed}))
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise InputError(f"{self._name}: fails on an image: {brief(error, 200)}") from error

    def _read_shape(self, shape: list[Any]) -> tuple[int, bool]:
        """Return the images' side, and whether the model takes one at a time."""
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise InputError(
                f"{self._name}: wanted an input [batch, 3, side, side], got {_show(shape)}"
            )
        batch, _, *sides = shape
        fixed = {side for side in sides if isinstance(side, int) and side > 0}
        if len(fixed) > 1:
            raise InputError(f"{self._name}: wanted square images, got {_show(shape)}")
        if isinstance(batch, int) and batch > 1:
            raise InputError(
                f"{self._name}: wanted a batch of one or of any size, got {_show(shape)}; "
                "export the model with a dynamic batch"
            )
        return (fixed.pop() if fixed else self._input.size), batch == 1

    def _find_output(self) -> str:
        grey = np.zeros((1, 3, self.size, self.size), self._dtype)
        nodes = self._session.get_outputs()
        values = self._run(None, grey)
        for node, value in zip(nodes, values, strict=True):
            floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
            if floats and value.ndim == 2 and len(value) == 1 and value.size:
                return str(node.name)
        shapes = ", ".join(f"{node.name} {_show(list(node.shape))}" for node in nodes)
        raise InputError(
            f"{self._name}: wanted an output [1, features] of floats, got {brief(shapes, 200)}"
        )


def _show(shape: list[Any]) -> str:
    return "[" + ", ".join("?" if n is None else brief(n, 20) for n in shape) + "]"


def _open(path: StrPath, name: str, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{name}: ONNX models need ONNX Runtime: pip install 'fiqa_fast[evaluate]'"
        ) from error
    try:
        open_regular(path).close()
    except (OSError, ImageError) as error:
        raise InputError(f"{name}: {describe(error)}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as an exception
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise InputError(f"{name}: no readable ONNX model: {brief(error, 200)}") from error
