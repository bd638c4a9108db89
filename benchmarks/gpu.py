# SPDX-License-Identifier: Apache-2.0
"""Tests and times the CUDA operators and the GPU engine: one command, one JSON file, two tables.

First `pytest -m cuda`, in which nothing may be skipped for want of a GPU. Then every operator is
compared with fiqa_fast.reference in float64, and only what is right is timed: beside torch eager
and torch.compile of the same formula, in turns, on inputs that the L2 cache has lost. "least" is
the roofline: the time of the bytes and operations that any implementation needs, at the bandwidth
that a copy reaches in the same run (at the data sheet's too, in the JSON). Last the engine, from
images to scores: as CUDA graphs and without them (gpu_engine.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

import gpu_engine
import gpu_roofline
from fiqa_fast import _load
from fiqa_fast._runtime import build_info
from fiqa_fast.gallery.atomic import check_target
from fiqa_fast.gallery.errors import OutputError
from gpu_operators import OPERATORS, Operator, Size
from gpu_timing import Timer, as_json, copies_needed, cuda_seconds, host_seconds, race

ROOT = Path(__file__).resolve().parents[1]
FAILED, USAGE = 1, 2
# Of the largest value. Operators accumulate in float32; an eager formula may round everything.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
EAGER_TOLERANCE = 0.1

EXAMPLES = """examples:
  python benchmarks/gpu.py                                 # everything, into gpu.json
  python benchmarks/gpu.py --quick --no-tests              # a minute: bfloat16, few rounds
  python benchmarks/gpu.py --operators layer_norm_dot --batch 256 --no-engine -o dot.json
  python benchmarks/gpu.py --operators none                # the tests, and the engine alone
  python benchmarks/gpu.py --device cpu --quick            # tries the script itself
"""


@dataclass(frozen=True)
class Device:
    device: torch.device
    timer: Timer
    cache_bytes: int
    buffer_bytes: int  # of the copy that finds the bandwidth
    gemm: int  # rows of the square product that finds the arithmetic rates
    calls: int  # per sample
    facts: dict[str, Any]


def cpu() -> Device:
    """Small: for trying the script, not for figures."""
    facts = {"name": platform.processor() or platform.machine()}
    return Device(torch.device("cpu"), host_seconds, 1 << 20, 1 << 22, 128, 1, facts)


def cuda() -> Device:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts = {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }
    device = torch.device("cuda", torch.cuda.current_device())
    buffer = min(1 << 30, properties.total_memory // 16)
    return Device(device, cuda_seconds, properties.L2_cache_size, buffer, 8192, 20, facts)


def why_no_cuda() -> str:
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees none"
    return _load.cuda_status().reason


def said(*command: str) -> str:
    """What a program says, or "unknown"."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def versions() -> dict[str, Any]:
    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "driver": driver.splitlines()[0] if driver else "unknown",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "toolkit": build_info()["cuda"],
        "archs": build_info()["cuda_archs"],
        "python": platform.python_version(),
        "commit": said("git", "rev-parse", "HEAD"),
        "changed_files": len(said("git", "status", "--porcelain", "-uno").splitlines()),
    }


def run_tests(paths: Sequence[Path]) -> dict[str, Any]:
    """Everything marked cuda; without a GPU it fails."""
    with tempfile.TemporaryDirectory() as folder:  # elsewhere than in the source tree
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={report}"]
        command += [f"-c{ROOT / 'pyproject.toml'}", "-pno:cacheprovider", *map(str, paths)]
        environment = {**os.environ, "FIQA_FAST_REQUIRE_CUDA": "1"}
        status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        if report.exists():
            for suite in ElementTree.parse(report).iter("testsuite"):
                for name in counts:
                    counts[name] += int(suite.get(name, 0))
    return {"status": status, **counts}


def error_of(got: Any, expected: Any) -> tuple[float, float]:
    """The largest error over its output's largest value, and over what it may be."""
    error = share = 0.0
    tensors = [leaf for leaf in tree_leaves(got) if isinstance(leaf, torch.Tensor)]
    wanted = [leaf for leaf in tree_leaves(expected) if isinstance(leaf, torch.Tensor)]
    if [one.shape for one in tensors] != [other.shape for other in wanted]:
        return float("inf"), float("inf")
    for one, other in zip(tensors, wanted, strict=True):
        largest = other.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        relative = float((one.double() - other).abs().max() / largest)
        relative = float("inf") if relative != relative else relative
        error, share = max(error, relative), max(share, relative / TOLERANCE[one.dtype])
    return error, share


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def measure(
    operator: Operator,
    size: Size,
    dtype: torch.dtype,
    device: Device,
    peaks: dict[str, gpu_roofline.Peak | None],
    rounds: int,
    with_compile: bool = True,
) -> dict[str, Any]:
    """One row of the table; "failed" says why there are no times."""
    cost = operator.cost(size, dtype.itemsize)
    entry: dict[str, Any] = {
        "operator": operator.name,
        "size": list(size),
        "dtype": str(dtype).removeprefix("torch."),
        **asdict(cost),
        "roofline": {
            name: asdict(gpu_roofline.bound(cost, peak)) for name, peak in peaks.items() if peak
        },
        "functions": {},
    }
    functions = {"fiqa_fast": operator.function, "eager": operator.eager}
    if with_compile:
        functions["compiled"] = compiled(operator.eager)
    torch.manual_seed(0)
    first = operator.make(size, dtype, device.device)
    expected = operator.reference(*first)
    for name, function in list(functions.items()):
        try:
            error, share = error_of(function(*first), expected)
        except Exception as failure:  # a compiler may be missing; the others are timed without it
            if name == "fiqa_fast":
                raise
            entry["functions"][name] = {"failed": " ".join(str(failure).split())[:300]}
            del functions[name]
            continue
        entry["functions"][name] = {"error": error}
        if share > 1 if name == "fiqa_fast" else error > EAGER_TOLERANCE:
            entry["failed"] = f"{name} is off by {error:.1e} of the largest value"
            return entry
    del expected
    inputs = [first]
    while len(inputs) < copies_needed(cost.bytes, device.cache_bytes):
        inputs.append(operator.make(size, dtype, device.device))
    entry["copies"] = len(inputs)
    for name, times in race(functions, inputs, device.timer, rounds, device.calls).items():
        entry["functions"][name].update(as_json(times))
    return entry


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Microseconds: medians with quartiles, and ratios of medians."""
    lines = [
        f"{'operator':<32}{'size':<18}{'dtype':<10}{'fiqa_fast us':>13}{'quartiles':>20}"
        f"{'least us':>10}{'reached':>9}{'eager':>8}{'compiled':>10}{'error':>10}"
    ]
    for entry in entries:
        size = "x".join(map(str, entry["size"]))
        line = f"{entry['operator']:<32}{size:<18}{entry['dtype']:<10}"
        ours = entry["functions"].get("fiqa_fast", {})
        if "failed" in entry:
            lines.append(f"{line}  FAILED, not timed: {entry['failed']}")
            continue
        median, least = ours["median_s"], entry["roofline"]["measured"]["seconds"]
        quartiles = f"({ours['low_s'] * 1e6:.1f} to {ours['high_s'] * 1e6:.1f})"
        line += f"{median * 1e6:>13.1f}{quartiles:>20}{least * 1e6:>10.1f}{least / median:>9.0%}"
        for name, width in (("eager", 8), ("compiled", 10)):
            other = entry["functions"].get(name, {}).get("median_s")
            line += f"{'-' if other is None else f'{other / median:.2f}x':>{width}}"
        lines.append(f"{line}{ours['error']:>10.1e}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="gpu.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("-o", "--output", default="gpu.json", metavar="FILE", help="the result (%(default)s)")
    add("--quick", action="store_true", help="few rounds, bfloat16, one size per operator")
    add("--no-tests", action="store_true", help="only measure")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--no-engine", action="store_true", help="only operators")
    add("--operators", nargs="+", metavar="NAME", help="of the table (all), or none")
    add("--batch", type=int, metavar="B", help="images, instead of each operator's own size")
    add("--rounds", type=int, help="samples of every function (40; 10 if quick)")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script itself")
    return result


def selected(options: argparse.Namespace) -> list[tuple[Operator, Size, torch.dtype]]:
    dtypes = [torch.bfloat16] if options.quick else [torch.float32, torch.bfloat16, torch.float16]
    known = [operator.name for operator in OPERATORS]
    if options.operators == ["none"]:
        options.operators = []
    for name in options.operators or ():
        if name not in known:
            raise ValueError(f"--operators wanted some of {', '.join(known)}, got {name}")
    for name in ("batch", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} wanted a positive number, got {value}")
    return [
        (operator, (options.batch or size[0], *size[1:]), dtype)
        for operator in OPERATORS
        if operator.name in (known if options.operators is None else options.operators)
        for size in operator.sizes[: 1 if options.quick else None]
        for dtype in dtypes
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        work = selected(options)
        target = Path(check_target(options.output))
        if options.device == "cuda" and (reason := why_no_cuda()):
            raise ValueError(f"wanted a CUDA device with fiqa_fast's operators: {reason}")
    except (ValueError, OutputError) as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return USAGE
    on_cpu = options.device == "cpu"
    device = cpu() if on_cpu else cuda()
    result: dict[str, Any] = {"device": device.facts, **versions(), "tests": None}
    if not on_cpu and not options.no_tests:
        result["tests"] = run_tests([ROOT / "tests"])
    with torch.no_grad():
        reached = gpu_roofline.measured(
            device.device, device.timer, device.buffer_bytes, device.gemm
        )
        sheet = gpu_roofline.NOMINAL.get(device.facts["name"])
        # Bandwidth as measured; arithmetic by the data sheet, if there is one.
        peak = replace(sheet, name="measured", bandwidth=reached.bandwidth) if sheet else reached
        result["peaks"] = {"measured": asdict(reached), "nominal": sheet and asdict(sheet)}
        rounds = options.rounds or (10 if options.quick else 40)
        result.update(rounds=rounds, calls_per_round=device.calls, operators=[])
        for operator, size, dtype in work:
            print(f"{operator.name} {list(size)} {dtype}", file=sys.stderr)
            peaks = {"measured": peak, "nominal": sheet}
            result["operators"].append(
                measure(operator, size, dtype, device, peaks, rounds, not options.no_compile)
            )
    result["engine"] = []
    for case in [] if options.no_engine else gpu_engine.cases(options.quick, on_cpu):
        print(case, file=sys.stderr)
        result["engine"].append(gpu_engine.measure(case, device.device, rounds))
    target.write_text(json.dumps(result, indent=1) + "\n")

    bandwidth = f"copy {reached.bandwidth / 1e12:.3g} TB/s"
    if sheet:
        bandwidth += f" of {sheet.bandwidth / 1e12:.3g} ({sheet.name})"
    print(f"{device.facts['name']}, torch {torch.__version__}, {bandwidth}")
    tests = result["tests"]
    if tests:
        print(", ".join(f"{count} {name}" for name, count in tests.items() if name != "status"))
    if result["operators"]:
        print(table(result["operators"]))
    if result["engine"]:
        print(gpu_engine.table(result["engine"]))
    print(f"written to {target}", file=sys.stderr)
    failed = any("failed" in entry for entry in result["operators"] + result["engine"])
    return FAILED if failed or (tests and tests["status"]) else 0


if __name__ == "__main__":
    sys.exit(main())
