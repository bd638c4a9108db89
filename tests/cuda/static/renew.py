# SPDX-License-Identifier: Apache-2.0
"""Writes what the kernels take of a multiprocessor to resources.json: run it after a change that is
meant to change this, and look at the difference.

    python tests/cuda/static/renew.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from static.compiled import ARCHS, compile_all, nvcc, nvcc_release, resources

TABLE = Path(__file__).with_name("resources.json")


def measured() -> dict[str, dict[str, dict[str, int]]]:
    return {
        f"sm_{arch}": {
            name: {"registers": r.registers, "shared_bytes": r.shared_bytes}
            for name, r in sorted(resources(arch).items())
        }
        for arch in ARCHS
    }


def main() -> int:
    if nvcc() is None:
        print("no nvcc in CUDA_HOME or on the PATH")
        return 1
    compile_all()
    table = {"nvcc": nvcc_release(), "kernels": measured()}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
