# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels and emulator with g++. Objects are kept by the hash of all that goes into them,
so that a second run compiles nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / "build" / "emulation"

FLAGS = [
    *("-std=c++20", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    # As nvcc's -fmad=false: only fmaf() fuses.
    "-ffp-contract=off",
]


@dataclass(frozen=True)
class Variant:
    name: str
    kernel_flags: tuple[str, ...] = ()
    runtime_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


_ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_THREAD = ("-fsanitize=thread",)
FAST = Variant("fast")
ADDRESS = Variant("address", _ADDRESS, _ADDRESS, _ADDRESS)
# The runtime itself is not instrumented: its threads take turns, and it says what orders them.
THREAD = Variant("thread", _THREAD, ("-DEMULATION_TSAN",), _THREAD)


@dataclass(frozen=True)
class Built:
    library: Path  # for ctypes
    program: Path  # for a process of its own


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _key(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


_INCLUDE = re.compile(r'^#include [<"]([^>"]+)[>"]', re.MULTILINE)
# Before every source, as nvcc does with its own.
_FIRST = "cuda_runtime_api.h"


class Builder:
    """Builds variants from the kernels in `csrc`, which may be a changed copy: what is not in the
    cache yet then goes to `scratch`.
    """

    def __init__(
        self, csrc: Path = ROOT / "csrc", jobs: int | None = None, scratch: Path | None = None
    ) -> None:
        self.includes = (HERE / "include", HERE, csrc)
        self.csrc = csrc
        self.jobs = jobs or os.cpu_count() or 1
        self.folder = scratch or CACHE
        found = compiler()
        if found is None:
            raise FileNotFoundError("the emulator needs g++")
        self.compiler = found
        version = subprocess.run([found, "--version"], capture_output=True, check=True).stdout
        self.version = version.decode()

    def closure(self, source: Path) -> list[Path]:
        """A source and all of our own headers that it includes."""
        seen, waiting = [], [source, HERE / "include" / _FIRST]
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.append(path)
            for name in _INCLUDE.findall(path.read_text()):
                found = [folder / name for folder in self.includes if (folder / name).is_file()]
                waiting += found[:1]
        return seen

    def _find(self, name: str) -> Path:
        """Where something of this name is, or is to be made."""
        return CACHE / name if (CACHE / name).exists() else self.folder / name

    def _object(self, source: Path, flags: tuple[str, ...]) -> Path:
        """The object file of a source, compiled if it has to be."""
        contents = sorted(path.read_text() for path in self.closure(source))
        inputs = [self.version, *FLAGS, *flags, source.name, *contents]
        target = self._find(f"{source.stem}.{_key(inputs)}.o")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.new")
            _run(
                [
                    *(self.compiler, *FLAGS, *flags, *(f"-I{folder}" for folder in self.includes)),
                    *("-include", _FIRST, "-x", "c++", "-c", str(source), "-o", str(fresh)),
                ]
            )
            fresh.replace(target)
        return target

    def build(self, variant: Variant) -> Built:
        kernels = [*sorted(self.csrc.glob("kernels/cuda/*.cu")), *sorted(HERE.glob("probes/*.cu"))]
        kernels.append(HERE / "runtime/static_shared.cpp")
        runtime = [p for p in sorted(HERE.glob("runtime/*.cpp")) if p not in kernels]
        runtime += sorted(HERE.glob("harness/*.cpp"))
        with ThreadPoolExecutor(self.jobs) as pool:
            compiled = list(
                pool.map(
                    lambda job: self._object(*job),
                    [(source, variant.kernel_flags) for source in kernels]
                    + [(source, variant.runtime_flags) for source in runtime],
                )
            )
        return self._link(variant, compiled[: len(kernels)], compiled[len(kernels) :])

    def _link(self, variant: Variant, kernels: list[Path], runtime: list[Path]) -> Built:
        names = [path.name for path in (*kernels, *runtime)]
        folder = self._find(f"{variant.name}-{_key(names)}")
        built = Built(folder / "libemulation.so", folder / "emulation")
        if folder.exists():
            return built
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}.{threading.get_ident()}.new")
        fresh.mkdir(parents=True)
        link = [self.compiler, *variant.link_flags, "-Wl,-rpath,$ORIGIN", f"-L{fresh}"]
        # Apart from the rest: what its variables occupy is shared memory (static_shared.cpp).
        _run([*link, "-shared", *map(str, kernels), "-o", str(fresh / "libkernels.so")])
        main = [str(path) for path in runtime if path.name.startswith("main.")]
        rest = [str(path) for path in runtime if not path.name.startswith("main.")]
        _run([*link, "-shared", *rest, "-lkernels", "-o", str(fresh / "libemulation.so")])
        _run([*link, *main, "-lemulation", "-lkernels", "-o", str(fresh / "emulation")])
        try:
            fresh.rename(folder)
        except OSError:  # someone else was quicker
            shutil.rmtree(fresh)
        return built


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
