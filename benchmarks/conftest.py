# SPDX-License-Identifier: Apache-2.0
"""Run with `pytest benchmarks --benchmark-group-by=func,param:dtype`.

Every benchmark verifies a function before it times it. `--benchmark-json` keeps medians, machine
and versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fiqa_fast import _load


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not (torch.cuda.is_available() and _load.cuda_status().loaded):
        pytest.skip(_load.cuda_status().reason or "no CUDA device")
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    result: torch.dtype = request.param
    return result


@pytest.fixture
def time_it(benchmark: Any, device: str) -> Callable[..., None]:
    def run(function: Callable[..., Any], *arguments: Any) -> None:
        def call() -> None:
            function(*arguments)
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.extra_info.update(
            threads=torch.get_num_threads(), isa=_load.isa(), torch=torch.__version__
        )
        with torch.inference_mode():
            benchmark.pedantic(call, rounds=100, warmup_rounds=10)

    return run
