# SPDX-License-Identifier: Apache-2.0
"""The emulator, built once per session and per variant, for the tests of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from emulation.build import ADDRESS, FAST, THREAD, Builder, Built, Variant, compiler
from emulation.calls import Library, Program


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
