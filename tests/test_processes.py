# SPDX-License-Identifier: Apache-2.0
"""Worker processes: the same table, and nothing lost where one of them dies."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from command_line import COMMAND, face, one_line_error
from containers import write_tar

from fiqa_fast.gallery.shares import fingerprint

FAST = ("--exit", "1", "--threads", "1", "--workers", "1", "--save-every", "0")


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A list of many images, two of which cannot be read."""
    for seed in range(5):
        face(tmp_path / f"{seed}.png", seed)
    (tmp_path / "bad.png").write_bytes(b"")
    names = [f"{i % 5}.png" for i in range(1200)]
    (tmp_path / "list.txt").write_text("\n".join(["bad.png", *names, "missing.png"]))
    return tmp_path / "list.txt"


def begin(crops: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "score", str(crops), *FAST, *args],
        cwd=crops.parent,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(crops: Path, *args: str) -> str:
    process = begin(crops, *args)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return err


def parts_of(output: Path) -> list[Path]:
    return list((output.parent / f".{output.name}.unfinished").glob("part-*"))


def wait_for_parts(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(parts_of(output)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_two_workers_and_a_killed_one(cli: Any, crops: Path) -> None:
    single = crops.parent / "single.parquet"
    outcome = cli("score", crops, *FAST, "-o", single)
    assert outcome.status == 0, outcome.err
    output = crops.parent / "out.parquet"
    process = begin(crops, "-o", "out.parquet", "--processes", "2")
    wait_for_parts(process, output, 1)
    first = int(parts_of(output)[0].name.split("-")[2])
    psutil.Process(process.pid).children()[first].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "was ended by signal 9; the rows of all workers are kept: run the same command" in err
    assert "rows are kept; the same command goes on from there" in err
    assert not output.exists()
    kept = sum(pq.read_metadata(part).num_rows for part in parts_of(output))
    assert 600 < kept < 1202  # the other worker went on to its end
    err = finish(crops, "-o", "out.parquet", "--processes", "2")
    assert f"{kept} rows are there already" in err
    assert f"of {1202 - kept} images scored" in err
    assert output.read_bytes() == single.read_bytes()
    err = finish(crops, "-o", "out.parquet", "--processes", "3")
    assert "nothing left to score" in err


def test_workers_end_with_their_parent_and_hold_the_output_till_then(crops: Path) -> None:
    output = crops.parent / "out.parquet"
    process = begin(crops, "-o", "out.parquet", "--processes", "2")
    wait_for_parts(process, output, 4)
    workers = psutil.Process(process.pid).children()
    for worker in workers:
        worker.suspend()
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    second = begin(crops, "-o", "out.parquet")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "another run is writing it" in err
    for worker in workers:
        worker.resume()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    finish(crops, "-o", "out.parquet")
    assert pq.read_table(output).num_rows == 1202


def test_a_stopped_run_stops_its_workers(crops: Path) -> None:
    output = crops.parent / "out.parquet"
    process = begin(crops, "-o", "out.parquet", "--processes", "2")
    wait_for_parts(process, output, 4)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert not any(worker.is_running() for worker in workers)
    assert f"{sum(pq.read_metadata(part).num_rows for part in parts_of(output))} rows" in err
    assert not list(output.parent.glob(".out.parquet.unfinished/*.tmp"))


def test_what_cannot_be_shared_out_is_refused(cli: Any, crops: Path) -> None:
    message = one_line_error(cli("score", crops, "--processes", 2))
    assert message == "--processes needs a table to write: -o FILE or -o DIR/"
    assert not list(crops.parent.glob(".*.unfinished"))


def test_workers_agree_on_the_containers(
    cli: Any, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came between the starts of two workers would be nobody's, and others be twice."""
    for i in range(9):
        write_tar(crops.parent / f"{i}.tar", {f"{i}.png": (crops.parent / "0.png").read_bytes()})
    command = ("score", f"{crops.parent}/*.tar", *FAST, "-o", crops.parent / "out.parquet")
    assert cli(*command, "--processes", 2).status == 0
    assert pq.read_table(crops.parent / "out.parquet").num_rows == 9
    here = {"index": 0, "count": 2, "start": 1, "reports": 1, "plan": fingerprint(["0.tar/"])}
    monkeypatch.setenv("FIQA_FAST_WORKER", json.dumps(here))
    message = one_line_error(cli(*command, "--processes", 2))
    assert message.startswith("the inputs have other containers than when the run was started")
