# SPDX-License-Identifier: Apache-2.0
"""Builds the three libraries of fiqa_fast with one build.ninja.

    fiqa_fast._C        schemas and CPU implementations; torch's stable ABI, Python's limited API
    fiqa_fast._C_cuda   CUDA implementations; loaded at run time only where torch has CUDA
    fiqa_fast._runtime  pybind11: build information and stateful objects

Kernels include nothing of torch, so .cu files compile in seconds and no rule needs a CUDA build of
torch, let alone a GPU. CPU kernels are compiled once per instruction set level. Environment:

    FIQA_FAST_CUDA        auto (default: if a toolkit is found), 0 (never), 1 (an error without one)
    FIQA_FAST_CUDA_ARCHS  for development, e.g. "90" or "80;90": compile for these only
    CUDA_HOME, CUDA_PATH  the toolkit; otherwise that of nvcc on the PATH, otherwise /usr/local/cuda
    CXX, CXXFLAGS, LDFLAGS, MAX_JOBS
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# In the source tree and the same for every kind of install, so that the next build is incremental.
BUILD = Path("build") / f"ninja-{sys.implementation.cache_tag}"

# The oldest torch whose stable ABI we use: 2.13. What is built for it runs on every later one.
TORCH_TARGET = "0x020d000000000000"
# The oldest Python whose limited API _C uses.
PYTHON_TARGET = "0x030a0000"

CXX_FLAGS = [
    *("-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-Wall", "-Wextra"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
]
# Only explicit fused multiply-adds, so that all paths through a kernel round alike (see vec.h).
KERNEL_FLAGS = ["-ffp-contract=off", "-fno-math-errno"]
X86_ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c"),
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ],
}
# The CPU engine has three levels more.
ENGINE_ISA_FLAGS = {
    **X86_ISA_FLAGS,
    "avx512_vnni": [*X86_ISA_FLAGS["avx512"], "-mavx512vnni"],
    "avx512_bf16": [*X86_ISA_FLAGS["avx512"], "-mavx512vnni", "-mavx512bf16"],
    "amx": [
        *(*X86_ISA_FLAGS["avx512"], "-mavx512vnni", "-mavx512bf16"),
        *("-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ],
}
# As KERNEL_FLAGS, for the same reason.
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false"]
# Ampere to Blackwell, each with machine code and PTX of its own: PTX can be tested without a GPU.
CUDA_ARCHS = ["80", "86", "87", "89", "90", "100", "120"]

# Compiled once, not per instruction set level.
PLAIN_KERNEL_SOURCES = ["csrc/kernels/cpu/cpu_features.cpp", "csrc/kernels/cpu/isa.cpp"]


def fail(text: str) -> None:
    raise SystemExit(f"fiqa_fast: {text}")


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


@dataclass
class Toolkit:
    """A CUDA toolkit and the architectures to compile for."""

    home: Path
    version: str
    archs: list[str]

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    @property
    def library_folder(self) -> Path:
        for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (self.home / name / "libcudart_static.a").is_file():
                return self.home / name
        raise SystemExit(f"fiqa_fast: no libcudart_static.a in the CUDA toolkit {self.home}")


def find_toolkit() -> Path | str:
    """The toolkit's folder, or the reason why there is none."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if named:
        places = [Path(place) for place in named]
    else:
        on_path = shutil.which("nvcc")
        places = [Path(on_path).resolve().parent.parent] if on_path else []
        places.append(Path("/usr/local/cuda"))
    for place in places:
        if (place / "bin/nvcc").is_file() and (place / "include/cuda_runtime.h").is_file():
            return place
    return "no CUDA toolkit (bin/nvcc, include/cuda_runtime.h) in " + ", ".join(map(str, places))


def nvcc_says(nvcc: Path, option: str) -> str:
    return subprocess.run([nvcc, option], check=True, capture_output=True, text=True).stdout


def choose_archs(nvcc: Path) -> list[str]:
    known = set(re.findall(r"compute_(\d+)", nvcc_says(nvcc, "--list-gpu-arch")))
    wanted = os.environ.get("FIQA_FAST_CUDA_ARCHS", "")
    if not wanted:
        return [arch for arch in CUDA_ARCHS if arch in known]
    archs = [arch for arch in re.split(r"[;,\s]+", wanted) if arch]
    unknown = [arch for arch in archs if arch not in known]
    if unknown or not archs:
        supported = ", ".join(sorted(known, key=int))
        fail(
            f"FIQA_FAST_CUDA_ARCHS should name architectures of {nvcc} ({supported}),"
            f" got {wanted!r}"
        )
    return archs


def choose_cuda() -> Toolkit | str:
    """The toolkit to build with, or the reason why CUDA is not built."""
    choice = os.environ.get("FIQA_FAST_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        fail(f"FIQA_FAST_CUDA should be auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return "built without CUDA: FIQA_FAST_CUDA=0"
    home = find_toolkit()
    if isinstance(home, str):
        if choice == "1":
            fail(f"FIQA_FAST_CUDA=1 needs a CUDA toolkit: {home}")
        return f"built without CUDA: {home}"
    nvcc = home / "bin/nvcc"
    try:
        version = re.search(r"release (\d+)(\.\d+)", nvcc_says(nvcc, "--version"))
        problem = "" if version and int(version[1]) >= 12 else "older than 12, the first for C++20"
    except (OSError, subprocess.CalledProcessError) as error:
        version, problem = None, f"does not run: {error}"
    if problem or version is None:
        if choice == "1":
            fail(f"FIQA_FAST_CUDA=1 needs a CUDA toolkit of 12 or newer: {nvcc} is {problem}")
        return f"built without CUDA: {nvcc} is {problem}"
    return Toolkit(home, version[1] + version[2], choose_archs(nvcc))


class NinjaFile:
    """Collects rules and edges; paths are relative to the root of the source tree."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.8", f"builddir = {BUILD}", ""]

    def rule(self, name: str, command: str, **variables: str) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        self.lines.append("")

    def edge(self, output: Path | str, rule: str, inputs: list[str], flags: list[str]) -> str:
        def path(p: object) -> str:
            return re.sub(r"([$ :])", r"$\1", str(p))

        self.lines.append(f"build {path(output)}: {rule} {' '.join(map(path, inputs))}")
        self.lines.append(f"  flags = {shlex.join(flags).replace('$', '$$')}")
        return str(output)

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


class Build:
    """Everything that goes into build.ninja."""

    def __init__(self, cuda: Toolkit | str) -> None:
        import pybind11
        import torch

        self.cuda = cuda
        self.torch_version = torch.__version__
        self.torch_folder = Path(torch.__file__).parent
        self.cxx = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "c++"
        self.ninja = NinjaFile()
        self.torch_flags = [
            *("-isystem", str(self.torch_folder / "include")),
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            # Torch's checks name their own files; keep this machine's folders out of them.
            f"-ffile-prefix-map={self.torch_folder}=torch",
        ]
        self.python_flags = ["-isystem", sysconfig.get_paths()["include"]]
        self.pybind_flags = ["-isystem", pybind11.get_include()]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        self.isa_flags = X86_ISA_FLAGS if x86 else {"baseline": []}
        self.engine_isa_flags = ENGINE_ISA_FLAGS if x86 else {"baseline": []}

        environment = os.environ.get("CXXFLAGS", "")
        self.ninja.rule(
            "cxx",
            f"{self.cxx} -MMD -MF $out.d {' '.join(CXX_FLAGS)} -Icsrc $flags {environment} "
            "-c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        self.ninja.rule(
            "link", f"{self.cxx} -shared -o $out $in $flags {os.environ.get('LDFLAGS', '')}"
        )
        if isinstance(cuda, Toolkit):
            # The compiler itself: CXX may start with a launcher such as ccache.
            host = f"-ccbin {shlex.split(self.cxx)[-1]} " if os.environ.get("CXX") else ""
            self.ninja.rule(
                "nvcc",
                f"{cuda.nvcc} {host}-MD -MF $out.d {' '.join(NVCC_FLAGS)} --threads 2 "
                "-Xcompiler=-fPIC,-fvisibility=hidden -Icsrc $flags -c $in -o $out",
                depfile="$out.d",
                deps="gcc",
            )

    def compile(self, source: str, flags: list[str], suffix: str = "") -> str:
        return self.ninja.edge(BUILD / f"{source}{suffix}.o", "cxx", [source], flags)

    def compile_levels(self, source: str, levels: dict[str, list[str]]) -> list[str]:
        return [
            self.compile(source, [f"-DFIQA_FAST_ISA={isa}", *KERNEL_FLAGS, *flags], f".{isa}")
            for isa, flags in levels.items()
        ]

    def cpu_kernels(self) -> list[str]:
        objects = [self.compile(source, KERNEL_FLAGS) for source in PLAIN_KERNEL_SOURCES]
        for source in sources("csrc/kernels/cpu/*.cpp"):
            if source not in PLAIN_KERNEL_SOURCES:
                objects += self.compile_levels(source, self.isa_flags)
        return objects

    def engine(self) -> list[str]:
        objects = self.compile_levels("csrc/engine/level.cpp", self.engine_isa_flags)
        for source in sources("csrc/engine/*.cpp"):
            if source != "csrc/engine/level.cpp":
                objects.append(self.compile(source, []))
        return objects

    def libtorch(self) -> list[str]:
        # No rpath: importing torch has loaded these by the time our libraries are. libtorch must
        # stay a dependency although no symbol of it is used: it brings torch's CUDA library.
        return [f"-L{self.torch_folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]

    def ops_library(self) -> str:
        limited = [f"-DPy_LIMITED_API={PYTHON_TARGET}", *self.python_flags]
        objects = [
            self.compile(s, limited if s.endswith("module.cpp") else self.torch_flags)
            for s in sources("csrc/ops/*.cpp")
        ]
        objects += [self.compile(s, self.torch_flags) for s in sources("csrc/cpu/*.cpp")]
        objects += self.cpu_kernels()
        return self.ninja.edge(BUILD / "_C.so", "link", objects, self.libtorch())

    def cuda_library(self, toolkit: Toolkit) -> str:
        gencode = [
            f"-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]"
            for arch in toolkit.archs
        ]
        objects = [
            self.ninja.edge(BUILD / f"{source}.o", "nvcc", [source], gencode)
            for source in sources("csrc/kernels/cuda/*.cu")
        ]
        flags = [*self.torch_flags, "-DUSE_CUDA", "-isystem", str(toolkit.home / "include")]
        objects += [self.compile(source, flags) for source in sources("csrc/cuda/*.cpp")]
        cudart = [f"-L{toolkit.library_folder}", "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
        return self.ninja.edge(BUILD / "_C_cuda.so", "link", objects, [*self.libtorch(), *cudart])

    def runtime_library(self) -> str:
        flags = [*self.python_flags, *self.pybind_flags, f"-I{BUILD}"]
        objects = [self.compile(source, flags) for source in sources("csrc/runtime/*.cpp")]
        objects += self.engine()
        # The same objects as in _C. Of their state the one to go by is _C's: the level that was
        # chosen there is handed to the engine by name.
        objects += [str(BUILD / f"{source}.o") for source in PLAIN_KERNEL_SOURCES]
        return self.ninja.edge(BUILD / "_runtime.so", "link", objects, [])

    def build_info_header(self) -> str:
        cxx = subprocess.run(
            [*shlex.split(self.cxx), "--version"], check=True, capture_output=True, text=True
        ).stdout.splitlines()[0]
        cuda, archs = (
            (self.cuda.version, self.cuda.archs)
            if isinstance(self.cuda, Toolkit)
            else (self.cuda, [])
        )
        strings = {"COMPILER": cxx, "TORCH": self.torch_version, "CUDA": cuda}
        lines = [
            f'#define FIQA_FAST_BUILD_{key} "{value}"'.replace("\\", "\\\\")
            for key, value in strings.items()
        ]
        quoted = ", ".join(f'"{arch}"' for arch in archs)
        lines.append(f"#define FIQA_FAST_BUILD_CUDA_ARCHS std::vector<std::string>{{{quoted}}}")
        return "\n".join(lines) + "\n"

    def run(self) -> dict[str, Path]:
        """Builds what is out of date; returns the libraries by the names of their extensions."""
        libraries = {"fiqa_fast._C": self.ops_library()}
        if isinstance(self.cuda, Toolkit):
            libraries["fiqa_fast._C_cuda"] = self.cuda_library(self.cuda)
        libraries["fiqa_fast._runtime"] = self.runtime_library()
        (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
        write_if_changed(ROOT / BUILD / "build_info.h", self.build_info_header())
        write_if_changed(ROOT / BUILD / "build.ninja", self.ninja.text())
        command = [find_ninja(), "-f", str(BUILD / "build.ninja")]
        jobs = os.environ.get("MAX_JOBS")
        if jobs:
            if not jobs.isdecimal() or int(jobs) == 0:
                fail(f"MAX_JOBS should be a positive number, got {jobs!r}")
            command += ["-j", jobs]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            fail("the build failed: the compiler's message stands above")
        return {name: ROOT / path for name, path in libraries.items()}


def write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
        if not found:
            fail("ninja is needed to build: pip install ninja")
        return str(found)
    return str(Path(ninja.BIN_DIR) / "ninja")


class NinjaBuildExt(build_ext):
    """Lets ninja build everything, then puts the libraries where setuptools expects them."""

    def build_extensions(self) -> None:
        self.remove_stale(Path(self.get_ext_fullpath("fiqa_fast._C")).parent)
        for name, library in Build(CUDA).run().items():
            target = Path(self.get_ext_fullpath(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # A new file, never written over: a running process may have the old one mapped.
            fresh = target.with_suffix(".new")
            shutil.copyfile(library, fresh)
            fresh.chmod(0o755)
            fresh.replace(target)

    def copy_extensions_to_source(self) -> None:
        self.remove_stale(ROOT / "fiqa_fast")
        super().copy_extensions_to_source()

    def remove_stale(self, folder: Path) -> None:
        """A CUDA library of an earlier build must not go into a package without CUDA."""
        if not isinstance(CUDA, Toolkit):
            for library in folder.glob("_C_cuda.*"):
                library.unlink()


CUDA = choose_cuda()
extensions = [Extension("fiqa_fast._C", [], py_limited_api=True)]
if isinstance(CUDA, Toolkit):
    extensions.append(Extension("fiqa_fast._C_cuda", [], py_limited_api=True))
extensions.append(Extension("fiqa_fast._runtime", []))

setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuildExt})
