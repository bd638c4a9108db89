# SPDX-License-Identifier: Apache-2.0
"""Calls of the kernels' launchers with torch tensors, in this process or in one of its own."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from emulation.build import Built

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/kernels/dtype.h
# Integers travel as what has their size; kernels that take them know.
DTYPES |= {torch.int32: 0, torch.int16: 1}


class EmulationError(RuntimeError):
    """What the emulator or a sanitizer reported."""


@dataclass(frozen=True)
class Options:
    """What results must not depend on (runtime/options.h)."""

    seed: int = 0  # 0 forward, 1 reverse, others pseudo-random
    late_copies: bool = False
    max_blocks: int = 0


@dataclass
class Call:
    """One call: tensors of any strides, numbers, and which tensors it writes."""

    operation: str
    tensors: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    numbers: dict[str, float] = field(default_factory=dict)

    def poison(self) -> None:
        for name in self.outputs:
            self.tensors[name].fill_(float("nan"))

    def results(self) -> dict[str, torch.Tensor]:
        return {name: self.tensors[name].clone() for name in self.outputs}


class _Array(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("dims", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("strides", ctypes.c_int64 * 4),
    )


class _Number(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_double))


class _Call(ctypes.Structure):
    _fields_ = (
        ("arrays", ctypes.POINTER(_Array)),
        ("numbers", ctypes.POINTER(_Number)),
        ("array_count", ctypes.c_int64),
        ("number_count", ctypes.c_int64),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_int64),
        ("late_copies", ctypes.c_int64),
        ("max_blocks", ctypes.c_int64),
    )


def _four(values: tuple[int, ...]) -> tuple[int, ...]:
    return (*values, *([0] * (4 - len(values))))


class Library:
    """The emulator in this process: quick, for kernels that are trusted not to crash it."""

    def __init__(self, built: Built) -> None:
        self.call = ctypes.CDLL(str(built.library)).emulation_call
        self.call.restype = ctypes.c_char_p

    def run(self, call: Call, options: Options = Options()) -> dict[str, torch.Tensor]:
        call.poison()
        arrays = (_Array * len(call.tensors))(
            *(
                _Array(
                    name.encode(),
                    tensor.data_ptr(),
                    DTYPES[tensor.dtype],
                    tensor.dim(),
                    _four(tensor.shape),
                    _four(tensor.stride()),
                )
                for name, tensor in call.tensors.items()
            )
        )
        numbers = (_Number * len(call.numbers))(
            *(_Number(name.encode(), value) for name, value in call.numbers.items())
        )
        packed = _Call(arrays, numbers, len(arrays), len(numbers))
        chosen = _Options(options.seed, options.late_copies, options.max_blocks)
        problem = self.call(call.operation.encode(), ctypes.byref(packed), ctypes.byref(chosen))
        if problem is not None:
            raise EmulationError(problem.decode())
        return call.results()


def _span(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes from a tensor's first to its last element."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.as_strided((last + 1,), (1,)).view(torch.uint8)


def _text(data: bytes) -> bytes:
    return struct.pack("<q", len(data)) + data


def _packed(call: Call, options: Options) -> bytes:
    parts = [_text(call.operation.encode())]
    parts.append(struct.pack("<3q", options.seed, options.late_copies, options.max_blocks))
    parts.append(struct.pack("<q", len(call.tensors)))
    for name, tensor in call.tensors.items():
        parts += [_text(name.encode()), struct.pack("<q", tensor.data_ptr() % 16)]
        parts.append(_text(_span(tensor).numpy().tobytes()))
        parts.append(struct.pack("<2i", DTYPES[tensor.dtype], tensor.dim()))
        parts.append(struct.pack("<8q", *_four(tensor.shape), *_four(tensor.stride())))
    parts.append(struct.pack("<q", len(call.numbers)))
    for name, value in call.numbers.items():
        parts += [_text(name.encode()), struct.pack("<d", value)]
    return b"".join(parts)


class _Answers:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def text(self) -> bytes:
        (size,) = struct.unpack_from("<q", self.data, self.at)
        self.at += 8 + size
        return self.data[self.at - size : self.at]


# A sanitizer's report begins where it names itself.
_SANITIZERS = ("ERROR: AddressSanitizer", "WARNING: ThreadSanitizer", "runtime error:")


class Program:
    """The emulator in a process of its own: for sanitizers, and for kernels that may crash."""

    def __init__(self, built: Built, timeout: float = 300.0) -> None:
        self.program, self.timeout = built.program, timeout

    def run_all(self, calls: list[tuple[Call, Options]]) -> list[dict[str, torch.Tensor]]:
        for call, _ in calls:
            call.poison()
        with tempfile.TemporaryDirectory() as folder:
            inputs, answers = Path(folder, "calls"), Path(folder, "answers")
            packed = [_packed(call, options) for call, options in calls]
            inputs.write_bytes(struct.pack("<q", len(calls)) + b"".join(packed))
            try:
                done = subprocess.run(
                    [self.program, inputs, answers],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=self.timeout,
                    env={
                        **os.environ,
                        # Threads that a failure gave up are not freed, and need not be.
                        "ASAN_OPTIONS": "detect_leaks=0",
                        "UBSAN_OPTIONS": "print_stacktrace=1",
                        "TSAN_OPTIONS": "halt_on_error=1",
                    },
                )
            except subprocess.TimeoutExpired as error:
                raise EmulationError(f"ran for more than {self.timeout} s") from error
            if done.returncode:
                raise EmulationError(_report(done.stderr, done.returncode))
            return self._read(answers.read_bytes(), calls)

    def run(self, call: Call, options: Options = Options()) -> dict[str, torch.Tensor]:
        return self.run_all([(call, options)])[0]

    @staticmethod
    def _read(data: bytes, calls: list[tuple[Call, Options]]) -> list[dict[str, torch.Tensor]]:
        answers, results = _Answers(data), []
        for call, _ in calls:
            problem = answers.text().decode()
            spans = {name: answers.text() for name in call.tensors}
            if problem:
                raise EmulationError(problem)
            for name in call.outputs:
                after = torch.frombuffer(bytearray(spans[name]), dtype=torch.uint8)
                _span(call.tensors[name]).copy_(after)
            results.append(call.results())
        return results


def _report(stderr: str, status: int) -> str:
    starts = [stderr.find(name) for name in _SANITIZERS if name in stderr]
    report = stderr[min(starts) :] if starts else stderr
    return f"exit status {status}: {report[:3000]}"
