# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests share. Tests never import one another: what they share stands here."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Outcome, face

from fiqa_fast import _load
from fiqa_fast.cli import main


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """No test's random numbers depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _why_no_cuda() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return _load.cuda_status().reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    reason = _why_no_cuda()
    if not reason:
        return
    # A job that is meant to test CUDA must not pass because it found no GPU.
    if os.environ.get("FIQA_FAST_REQUIRE_CUDA") == "1":
        pytest.fail(f"FIQA_FAST_REQUIRE_CUDA=1, but: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test at each instruction set level of the CPU kernels."""
    if request.param not in _load.supported_isas():
        pytest.skip(f"this processor has no {request.param}")
    before = _load.isa()
    _load.set_isa(request.param)
    yield request.param
    _load.set_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a new interpreter; keywords are environment variables."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # Elsewhere, because `python -c` looks for packages where it is run, before the installed.
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def needs_data() -> Path:
    """The folder of test data that is not shipped."""
    folder = os.environ.get("FIQA_FAST_TEST_DATA")
    if not folder:
        pytest.skip("FIQA_FAST_TEST_DATA is not set")
    if not Path(folder).is_dir():
        pytest.skip(f"FIQA_FAST_TEST_DATA={folder} is no folder")
    return Path(folder)


@pytest.fixture
def source_tree() -> Path:
    root = Path(__file__).resolve().parent.parent
    if not (root / "setup.py").is_file():
        pytest.skip("not run from a source tree")
    return root


@pytest.fixture
def assert_as_exact_as() -> Callable[..., None]:
    """The rule for a fast path.

    Its error is at most twice that of an eager computation that accumulates in float32 too, plus
    two units in the last place of the largest value of `scale`: the reference itself, or its terms
    where they may cancel.
    """

    def check(
        got: torch.Tensor,
        eager: torch.Tensor,
        reference: torch.Tensor,
        scale: torch.Tensor | None = None,
    ) -> None:
        assert got.dtype == torch.float32
        assert got.shape == reference.shape
        assert got.is_contiguous()
        largest = (reference if scale is None else scale).abs().max()
        allowed = 2 * (eager.double() - reference).abs().max() + 2 * 2**-23 * largest
        error = (got.double() - reference).abs().max()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"

    return check


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process."""

    def invoke(*args: object) -> Outcome:
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        handlers = {number: signal.getsignal(number) for number in numbers}
        try:
            with pytest.raises(SystemExit) as caught:
                main([str(arg) for arg in args])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return Outcome(int(caught.value.code or 0), out, err)

    return invoke


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    for i in range(7):
        face(tmp_path / "in" / f"{i}.png", i)
    return tmp_path / "in"
