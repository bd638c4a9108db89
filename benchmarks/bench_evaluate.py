# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of error-versus-discard curves on ten million pairs of synthetic embeddings.

python benchmarks/bench_evaluate.py [--pairs all list] [--draws 0 1000] [--features 512]

Each measurement is a process of its own, so that its peak memory is its own. ``all``: all pairs of
4473 images; ``list``: ten million pairs of 23,000, a tenth of them genuine. Three operating points.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from fiqa_fast import evaluate

PAIRS = 10_000_000
IMAGES = {"all": 4473, "list": 23_000}
PER_IDENTITY = 10


def trials(kind: str, features: int) -> tuple[evaluate.Trials, float]:
    """The trials, and the seconds that their similarities took."""
    rng = np.random.default_rng(0)
    count = IMAGES[kind]
    identity = rng.integers(0, count // PER_IDENTITY, count)
    centres = rng.standard_normal((count // PER_IDENTITY, features), np.float32)
    embeddings = centres[identity] + 2 * rng.standard_normal((count, features), np.float32)
    if kind == "all":
        start = time.perf_counter()
        return evaluate.Trials.of_identities(embeddings, identity), time.perf_counter() - start
    a, b = rng.integers(0, count, (2, PAIRS)).astype(np.int32)
    order = np.argsort(identity, kind="stable").astype(np.int32)
    sizes = np.bincount(identity)
    begin = (np.cumsum(sizes) - sizes)[identity]
    own = order[begin[a] + rng.integers(0, 1 << 30, PAIRS) % sizes[identity[a]]]
    b = np.where(rng.random(PAIRS) < 0.1, own, b)
    genuine = identity[a] == identity[b]
    start = time.perf_counter()
    found = evaluate.Trials.of_pairs(embeddings, a, b, genuine, identity)
    return found, time.perf_counter() - start


def measure(kind: str, draws: int, features: int) -> dict[str, object]:
    found, seconds = trials(kind, features)
    quality = np.random.default_rng(1).random(len(found.identity))
    facts: dict[str, object] = {
        "pairs": f"{kind}, {found.num_genuine} genuine, {found.num_impostor} impostor",
        "draws": draws,
        "similarities s": round(seconds, 2),
    }
    total = seconds
    for protocol in evaluate.PROTOCOLS:
        start = time.perf_counter()
        evaluate.compare(found, {"q": quality}, protocols=[protocol], draws=draws)
        total += time.perf_counter() - start
        facts[f"{protocol} s"] = round(time.perf_counter() - start, 2)
    facts["all s"] = round(total, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts["peak GiB"] = round(peak / (1 << 30 if sys.platform == "darwin" else 1 << 20), 2)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=list(IMAGES), default=list(IMAGES))
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.pairs[0], arguments.draws[0], arguments.features)))
        return
    for kind in arguments.pairs:
        for draws in arguments.draws:
            command = [
                *(sys.executable, __file__, "--alone", "--pairs", kind, "--draws", str(draws)),
                *("--features", str(arguments.features)),
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(", ".join(f"{k} {v}" for k, v in json.loads(output).items()), flush=True)


if __name__ == "__main__":
    main()
