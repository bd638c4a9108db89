# SPDX-License-Identifier: Apache-2.0
"""Applies seeded bugs to copies of the kernels and sees that the quick suite fails on each.

    python tests/cuda/mutations/run.py --all      every bug; exit status 1 if one survives
    python tests/cuda/mutations/run.py --sample   those of the default test run
    python tests/cuda/mutations/run.py barrier    those whose description has the word

A bug goes up the ladder until it is caught: plain, AddressSanitizer, ThreadSanitizer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulation.build import ADDRESS, FAST, ROOT, THREAD, Builder, Built, Variant
from emulation.calls import EmulationError, Program
from mutations.suite import check
from mutations.table import MUTATIONS, Mutation
from operators import ALL

# With the most elements of a shape: sanitizers are slower.
LADDER: list[tuple[Variant, int]] = [(FAST, 100000), (ADDRESS, 6000), (THREAD, 500)]
# Every fourth: some of each file.
SAMPLE = MUTATIONS[::4]
TIMEOUT = 120.0  # seconds that a mutant may run; some would loop for ever


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of csrc with the bug."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc/kernels", csrc / "kernels")
    path = csrc / "kernels/cuda" / mutation.file
    text = path.read_text()
    if text.count(mutation.text) != 1:
        raise ValueError(f"{mutation.file} should have this once: {mutation.text!r}")
    path.write_text(text.replace(mutation.text, mutation.replacement))
    return csrc


def fails(built: Built, names: list[str], most: int) -> str:
    """How the suite fails; empty if it passes."""
    program = Program(built, TIMEOUT)
    for name in names:
        try:
            check(program, name, most)
        except (AssertionError, EmulationError) as error:
            return f"{name}: {error}".splitlines()[0]
    return ""


def caught(mutation: Mutation) -> str:
    """By which rung a bug is caught, and how; empty if it survives."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = mutated(mutation, Path(folder))
        builder = Builder(csrc, jobs=1, scratch=Path(folder) / "build")
        kernels = csrc / "kernels/cuda"
        # Whose source has the bug, or includes it.
        sources = {name: builder.closure(kernels / f"{name}.cu") for name in ALL}
        names = [name for name, paths in sources.items() if kernels / mutation.file in paths]
        for variant, most in LADDER:
            failure = fails(builder.build(variant), names, most)
            if failure:
                return f"{variant.name}: {failure}"
    return ""


def control() -> str:
    """How the suite fails on the kernels as they are."""
    builder = Builder()
    for variant, most in LADDER:
        failure = fails(builder.build(variant), list(ALL), most)
        if failure:
            return f"{variant.name}: {failure}"
    return ""


def run(mutations: list[Mutation]) -> list[Mutation]:
    """Prints one line per bug; returns those that survive."""
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, how in zip(mutations, pool.map(caught, mutations), strict=True):
            print(
                f"{mutation.file}: {mutation.stands_for}\n    {how[:160] or 'SURVIVES'}", flush=True
            )
            if not how:
                survivors.append(mutation)
    return survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    chosen = MUTATIONS if arguments.all else SAMPLE if arguments.sample else []
    if not chosen:
        chosen = [m for m in MUTATIONS if any(word in m.stands_for for word in arguments.words)]
    start = time.monotonic()
    failure = control()
    if failure:
        print(f"the kernels as they are fail: {failure}")
        return 1
    survivors = run(chosen)
    seconds = time.monotonic() - start
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught in {seconds:.0f} s")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
