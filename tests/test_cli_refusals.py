# SPDX-License-Identifier: Apache-2.0
"""Bad requests, interrupts and closed pipes: one line, a status, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command_line import COMMAND, face, one_line_error

from fiqa_fast.cli import main

# Bad requests


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["score", "nowhere"], "nowhere: no such file or directory"),
        (["score", "in", "-o", "out.xlsx"], "wanted a name ending in .parquet, .csv, .jsonl or .t"),
        (["score", "in", "-o", "no/out.csv"], "does not exist; create it first"),
        (
            ["score", "in", "-o", "out.csv", "--outputs", "embedding", "--vectors", "columns"],
            "use -o with",
        ),
        (["score", "in", "--outputs", "embedding"], "the terminal cannot hold embedding"),
        (["score", "in", "--outputs", "nonsense"], "wanted some of score, embedding, patch_map, q"),
        (["score", "in", "in"], "named twice"),
        (["score", "in", "--ext", "gif"], "no image with the suffix gif found"),
        (["score", "in", "--model", "nowhere.pt"], "nowhere.pt"),
        (["score", "in", "--model", "in/0.png"], "0.png"),
        (["score", "in", "--gauge", "nowhere.safetensors"], "nowhere.safetensors"),
        (["score", "in", "--architecture", "heads=3"], "wanted KEY=VALUE with KEY one of patch_si"),
        (["score", "in", "--architecture", "depth=x"], "depth=x cannot be read"),
        (["score", "in", "--architecture", "resnet"], "resnet"),
        (["score", "in", "--exit", "99"], "99"),
        (["score", "in", "--exit", "0"], "0"),
        (["score", "in", "--heads", "many"], "wanted all, average or a head number, got 'many'"),
        (["score", "in", "--heads", "77"], "77"),
        (["score", "in", "--method", "magic"], "magic"),
        (["score", "in", "--device", "toaster"], "toaster"),
        (["score", "in", "--dtype", "float7"], "float7"),
        (["score", "in", "--batch-size", "0"], "batch-size"),
        (["score", "in", "--nonsense"], "nonsense"),
        (["score"], None),
        (["nonsense"], "nonsense"),
        (["models", "extra"], "extra"),
    ],
)
def test_bad_requests_are_one_line(
    cli: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], match: str | None
) -> None:
    monkeypatch.chdir(gallery.parent)
    outcome = cli(*args)
    if match is None:  # no argument at all: help is the better answer
        assert outcome.status == 2
        assert "Usage: fiqa-fast score" in outcome.err
    else:
        assert match in one_line_error(outcome)
    assert sorted(os.listdir()) == ["in"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(cli: Any, gallery: Path) -> None:
    assert "cuda" in one_line_error(cli("score", gallery, "--device", "cuda")).lower()


def test_a_failing_scorer_leaves_the_old_table(
    cli: Any, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiqa_fast.scorer import Scorer

    def fail(self: Scorer, images: torch.Tensor) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate\n 2 GiB")

    monkeypatch.setattr(Scorer, "__call__", fail)
    path = tmp_path / "out.csv"
    path.write_text("old")
    message = one_line_error(cli("score", gallery, "-o", path, "--overwrite"))
    assert message.startswith("the scorer failed: RuntimeError: CUDA out of memory. Tried to alloc")
    assert message.endswith("lower --batch-size")
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in", "out.csv"]


def test_mistakes_of_ours_keep_their_traceback(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fiqa_fast.gallery.runner as runner

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(AssertionError, match="a mistake"):
        main(["score", str(gallery)])


# Interrupts and pipes


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts_keep_what_is_finished(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    face(tmp_path / "a.png", 0)
    (tmp_path / "list.txt").write_text("a.png\n" * 200_000)
    path = tmp_path / "out.csv"
    path.write_text("old")
    process = subprocess.Popen(
        [*COMMAND, "score", "list.txt", "-o", "out.csv", "--overwrite", "--save-every", "0"],
        cwd=tmp_path,  # not the source tree, which has no compiled libraries
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    state = tmp_path / ".out.csv.unfinished"
    while len(list(state.glob("part-*.parquet"))) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert out == ""
    assert "Traceback" not in err
    kept = sum(pq.read_metadata(part).num_rows for part in state.glob("part-*.parquet"))
    assert f"{kept} rows are kept; the same command goes on from there\n" in err
    if number == signal.SIGINT:
        assert err.endswith("\nfiqa-fast: interrupted\n")
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [state.name, "a.png", "list.txt", "out.csv"]
    assert not list(state.glob("*.tmp"))


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("when", [1, 2])
def test_a_signal_inside_of_a_lock_is_no_error(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    number: str,
    status: int,
    when: int,
) -> None:
    """Unwinding there fails by itself: "release unlocked lock" takes the exit's place.

    The second time is the start of a thread, which nobody would then tell to end.
    """
    face(tmp_path / "a.png", 0)
    (tmp_path / "list.txt").write_text("a.png\n" * 1000)
    done = run_python(
        f"""
import os, signal, sys, threading
from fiqa_fast.cli import main

acquire_again, calls = threading.Condition._acquire_restore, []

def interrupted(self, state):
    calls.append(None)
    if len(calls) == {when}:
        os.kill(os.getpid(), signal.{number})
    acquire_again(self, state)

threading.Condition._acquire_restore = interrupted
sys.argv[1:] = ["score", "list.txt", "-o", "out.csv", "--quiet"]
main()
"""
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    face(tmp_path / "a.png", 0)
    (tmp_path / "list.txt").write_text("a.png\n" * 5000)
    process = subprocess.Popen(
        [*COMMAND, "score", str(tmp_path / "list.txt"), "--quiet"],
        cwd=tmp_path,  # not the source tree, which has no compiled libraries
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("a.png ")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_a_second_signal_does_not_disturb_what_the_first_has_begun(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """`timeout` sends two: rows are being stored when the other one comes."""
    done = run_python(
        "import os, signal, threading, fiqa_fast.cli as cli\n"
        "cli._terminate_cleanly()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "finally:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('stored')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "stored\n", "")
