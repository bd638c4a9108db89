# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels and emulator with g++. Objects are kept by the hash of all that goes into them,
so that a second run compiles nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

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


def cache_folder() -> Path:
    return ROOT / "build" / "emulation"


def _content(folder: Path, patterns: tuple[str, ...]) -> str:
    """A hash of all headers of a folder."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


class Builder:
    """Builds variants from the kernels in `csrc`, which may be a changed copy."""

    def __init__(self, csrc: Path = ROOT / "csrc", jobs: int | None = None) -> None:
        self.csrc = csrc
        self.jobs = jobs or os.cpu_count() or 1
        found = compiler()
        if found is None:
            raise FileNotFoundError("the emulator needs g++")
        self.compiler = found
        version = subprocess.run([found, "--version"], capture_output=True, check=True).stdout
        self.headers = version.decode() + _content(csrc / "kernels", ("*.h", "*.cuh"))
        self.headers += _content(HERE, ("*.h", "*.cuh"))

    def _object(self, source: Path, flags: tuple[str, ...]) -> Path:
        """The object file of a source, compiled if it has to be."""
        inputs = [*FLAGS, *flags, source.name, source.read_text(), self.headers]
        key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:32]
        target = cache_folder() / f"{source.stem}.{key}.o"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            includes = (HERE / "include", HERE, self.csrc)
            fresh = target.with_suffix(f".{os.getpid()}.new")
            _run(
                [
                    *(self.compiler, *FLAGS, *flags, *(f"-I{folder}" for folder in includes)),
                    *("-include", "cuda_runtime_api.h", "-x", "c++", "-c", str(source)),
                    *("-o", str(fresh)),
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
        key = hashlib.sha256("\n".join(map(str, (*kernels, *runtime))).encode()).hexdigest()[:32]
        folder = cache_folder() / f"{variant.name}-{key}"
        built = Built(folder / "libemulation.so", folder / "emulation")
        if folder.exists():
            return built
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}.new")
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
