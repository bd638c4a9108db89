# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast info``: what is installed, what this machine has, and what is used of it."""

from __future__ import annotations

import importlib
import json
import os
import platform
from typing import Any

import click

from fiqa_fast.cli.group import version
from fiqa_fast.cores import cpu_name

__all__ = ["command"]


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show versions, devices and which kernels are in use, and why others are not.

    A report of a problem is easier to follow with this output in it.

    \b
    Examples:
      fiqa-fast info
      fiqa-fast info --json
    """
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(len(name) for section in facts.values() for name in section)
    for i, (section, entries) in enumerate(facts.items()):
        click.echo(("\n" if i else "") + section)
        for name, value in entries.items():
            text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
            click.echo(f"  {name:<{width}}  {text}")


def _facts() -> dict[str, dict[str, Any]]:
    import torch

    return {
        "versions": {
            "fiqa_fast": version(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda or "none",
            **_package_versions(),
        },
        "devices": _devices(),
        "kernels": _kernels(),
    }


def _package_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    versions = {}
    for name in ("numpy", "pillow", "pyarrow", "safetensors"):
        try:
            versions[name] = installed(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _devices() -> dict[str, Any]:
    import torch

    devices: dict[str, Any] = {"cpu": f"{cpu_name()}, torch uses {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        devices["cuda"] = "none" if torch.version.cuda else "none: this torch is built without CUDA"
        return devices
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        gib = device.total_memory / 2**30
        devices[f"cuda:{i}"] = (
            f"{device.name}, compute capability {device.major}.{device.minor}, {gib:.0f} GiB"
        )
    return devices


def _kernels() -> dict[str, Any]:
    """Ask the compiled parts about themselves; one that is missing says why."""
    kernels: dict[str, Any] = {}
    try:
        runtime = importlib.import_module("fiqa_fast._runtime")
        for name, value in runtime.build_info().items():
            kernels[f"built: {name}"] = value
        features = runtime.cpu_features()
        kernels["processor has"] = [name for name, present in features.items() if present]
        kernels["processor lacks"] = [name for name, present in features.items() if not present]
    except Exception as error:  # this command is for finding out what is broken
        kernels["runtime"] = f"not loaded: {_reason(error)}"
    try:
        load = importlib.import_module("fiqa_fast._load")
        loaded, reason = load.cuda_status()
        forced = " (FIQA_FAST_ISA)" if os.environ.get("FIQA_FAST_ISA") else ""
        kernels["CPU kernels"] = f"loaded, running at {load.isa()}{forced}"
        kernels["CUDA kernels"] = "loaded" if loaded else f"not loaded: {reason}"
    except Exception as error:
        kernels["CPU kernels"] = f"not loaded: {_reason(error)}"
    return kernels


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
