# SPDX-License-Identifier: Apache-2.0
"""The kernels as nvcc compiles them, kept by the hash of what goes into them: machine code with
ptxas's report, and PTX.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emulation.build import CACHE, ROOT

KERNELS = ROOT / "csrc/kernels"
ARCHS = ["80", "90", "100"]
FLAGS = ["-std=c++20", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}"]  # as in setup.py


@cache
def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


@cache
def nvcc_release() -> str:
    command = [str(nvcc()), "--version"]
    says = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", says)
    return found[1] if found else says


def disassembler() -> str | None:
    """cuobjdump of the toolkit, or of the package nvidia-cuda-cuobjdump."""
    package = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in package.submodule_search_locations or []] if package else []
    paths = [str(path) for folder in folders for path in folder.glob("*/bin")]
    return shutil.which("cuobjdump", path=os.pathsep.join([*paths, os.environ["PATH"]]))


def sources() -> list[Path]:
    return sorted(KERNELS.glob("cuda/*.cu"))


@cache
def _headers() -> str:
    return "".join(p.read_text() for s in ("*.h", "*.cuh") for p in sorted(KERNELS.rglob(s)))


def _compile(source: Path, kind: str, flags: list[str]) -> tuple[Path, str]:
    """The file that nvcc makes, and what it says."""
    inputs = [nvcc_release(), *FLAGS, *flags, source.name, source.read_text(), _headers()]
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:32]
    target = CACHE / f"{source.stem}.{key}.{kind}"
    log = target.with_suffix(".log")
    if not log.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.new")
        command = [str(nvcc()), *FLAGS, f"-{kind}", *flags, str(source), "-o", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        fresh.replace(target)
        log.write_text(done.stderr)
    return target, log.read_text()


def cubin(source: Path, arch: str) -> tuple[Path, str]:
    return _compile(source, "cubin", [f"-arch=sm_{arch}", "-Xptxas=-v"])


def ptx(source: Path, arch: str) -> Path:
    return _compile(source, "ptx", [f"-arch=compute_{arch}"])[0]


def compile_all() -> None:
    """Everything that is out of date, on all cores."""
    jobs = [lambda s=s, a=a: cubin(s, a) for s in sources() for a in ARCHS]
    jobs += [lambda s=s: ptx(s, "100") for s in sources()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()


_SYMBOL = re.compile(r"_cu_[0-9a-f]{8}(\d+)(\w+)")
_TYPES = {"f": "float32", "NS_8BFloat16E": "bfloat16", "NS_7Float16E": "float16"}
_TYPE = "|".join(_TYPES)
# A type, perhaps a second one (none, or the first again), perhaps whether loads are wide.
_ARGUMENTS = re.compile(rf"I({_TYPE})(v|{_TYPE}|S\d_)?(?:Lb([01])E)?E")


def kernel_name(symbol: str) -> str:
    """partial_sums<float32 + bfloat16, vector>, from its mangled name in an anonymous namespace."""
    found = _SYMBOL.search(symbol)
    if found is None:
        return symbol
    length = int(found[1])
    name, rest = found[2][:length], found[2][length:]
    arguments = _ARGUMENTS.match(rest)
    if arguments is None:
        return name
    types = _TYPES[arguments[1]]
    if arguments[2] not in (None, "v"):
        types += f" + {_TYPES.get(arguments[2], types)}"
    variant = {"1": ", vector", "0": ", scalar", None: ""}[arguments[3]]
    return f"{name}<{types}{variant}>"


@dataclass(frozen=True)
class Resources:
    registers: int
    shared_bytes: int
    spill_bytes: int


_REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def resources(arch: str) -> dict[str, Resources]:
    """By operator.kernel<dtype, variant>."""
    table = {}
    for source in sources():
        for symbol, stores, loads, registers, rest in _REPORT.findall(cubin(source, arch)[1]):
            shared = re.search(r"(\d+) bytes smem", rest)
            table[f"{source.stem}.{kernel_name(symbol)}"] = Resources(
                int(registers), int(shared[1]) if shared else 0, int(stores) + int(loads)
            )
    return table


def machine_code(source: Path, arch: str) -> dict[str, str]:
    """The instructions of each kernel, by kernel<dtype, variant>."""
    command = [str(disassembler()), "-sass", str(cubin(source, arch)[0])]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*Function : (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(map(kernel_name, parts[1::2]), parts[2::2], strict=True))
