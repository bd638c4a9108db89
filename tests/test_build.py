# SPDX-License-Identifier: Apache-2.0
"""What setup.py refuses, and how it says so. Nothing is built here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("setuptools")


def run_setup(source_tree, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=source_tree,
        capture_output=True,
        text=True,
        check=False,
        env={**kept, **environment},
    )


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"FIQA_FAST_CUDA": "yes"}, "fiqa_fast: FIQA_FAST_CUDA should be auto, 0 or 1, got 'yes'"),
        (
            {"FIQA_FAST_CUDA": "1", "CUDA_HOME": "/nowhere"},
            "fiqa_fast: FIQA_FAST_CUDA=1 needs a CUDA toolkit: no CUDA toolkit"
            " (bin/nvcc, include/cuda_runtime.h) in /nowhere",
        ),
    ],
)
def test_refuses_in_one_line(source_tree, environment, text):
    done = run_setup(source_tree, **environment)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == text


def test_no_toolkit_is_no_error_by_default(source_tree):
    done = run_setup(source_tree, FIQA_FAST_CUDA="auto", CUDA_HOME="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fiqa_fast"
