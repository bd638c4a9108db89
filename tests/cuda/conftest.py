# SPDX-License-Identifier: Apache-2.0
"""The emulator, built once per session and per variant, for the tests of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from emulation.build import ADDRESS, FAST, THREAD, Builder, Built, Variant, compiler
from emulation.calls import Library, Program


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are small: torch's threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def built() -> Callable[[Variant], Built]:
    if compiler() is None:
        pytest.skip("the emulator needs g++, or CXX")
    return cache(Builder().build)


@pytest.fixture(scope="session")
def emulator(built) -> Library:
    return Library(built(FAST))


@pytest.fixture(scope="session")
def address_sanitizer(built) -> Program:
    return Program(built(ADDRESS))


@pytest.fixture(scope="session")
def thread_sanitizer(built) -> Program:
    return Program(built(THREAD))
