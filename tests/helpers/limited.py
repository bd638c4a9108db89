# SPDX-License-Identifier: Apache-2.0
"""Runs ``fiqa-fast`` with so much memory and time and no more, and says what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOM = 1500 * 2**20  # bytes of address space beyond what the libraries take
SECONDS = 120

# One process loads the libraries, then forks for each command line: each starts as afresh.
_RUNS = """
import json, os, resource, signal, sys, tempfile, time
sys.path.remove('')
import fiqa_fast.gallery, fiqa_fast.scorer, pyarrow.parquet
from fiqa_fast.cli import main
room, seconds, commands = json.load(sys.stdin)
for args in commands:
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    start = time.monotonic()
    child = os.fork()
    if not child:
        for number, file in ((0, open(os.devnull)), (1, out), (2, err)):
            os.dup2(file.fileno(), number)
        pages = int(open('/proc/self/statm').read().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(seconds)
        try:
            main([os.fsdecode(bytes.fromhex(arg)) for arg in args])
        except SystemExit as end:
            if end.code != 2:
                raise
            sys.stderr.flush()
            os._exit(2)  # after a refusal there is nothing to wind up, which takes half a second
    _, status, usage = os.wait4(child, 0)
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode('utf-8', 'backslashreplace'))
    status = os.waitstatus_to_exitcode(status)
    print(json.dumps([status, *texts, usage.ru_maxrss * 1024, time.monotonic() - start]))
"""


class Run(NamedTuple):
    status: int  # negative: the signal that ended it
    out: str
    err: str
    peak: int  # bytes of resident memory, those of the libraries among them
    seconds: float


def run_limited(commands: Sequence[Sequence[str]], folder: Path) -> list[Run]:
    """What each command line comes to, run in ``folder`` one after the other."""
    encoded = [[os.fsencode(arg).hex() for arg in args] for args in commands]
    process = subprocess.run(
        [sys.executable, "-c", _RUNS],
        input=json.dumps([ROOM, SECONDS, encoded]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [Run(*json.loads(line)) for line in process.stdout.splitlines()]
