# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster for one run: one that exists, or one on this machine that ends with the run."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fiqa_fast.errors import CheckpointError, ImageError
from fiqa_fast.gallery.errors import InputError, OutputError, ScoringError
from fiqa_fast.gallery.text import brief
from fiqa_fast.ray.installed import import_ray

__all__ = ["connected", "in_one_line"]


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to the cluster at ``address``, or that of RAY_ADDRESS, or start one of this machine.

    Yields the module ``ray``. Raises :class:`InputError` where there is no such cluster.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_ray()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        _check_reachable(address)
        with _silence():
            ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"no Ray cluster at {address}: {brief(error, 200)}") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ``OSError`` where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep from standard error what Ray's compiled half says while it starts."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn Ray's errors into those that the user can mend, and the rest into one line."""
    ray = import_ray()
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> Exception:
    """Return what was raised on a machine of the cluster, if Ray wraps such a thing."""
    known = (InputError, OutputError, ScoringError, CheckpointError, ImageError)
    inner: BaseException | None = error
    last = error
    while inner is not None:
        for kind in known:
            if isinstance(inner, kind):
                return kind(_last_line(str(inner)))
        last = inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return ScoringError(f"Ray: {type(last).__name__}: {_last_line(str(last))}")


def _last_line(text: str) -> str:
    """Return what a remote traceback ends with, without the exception's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    name, colon, rest = line.partition(": ")
    return rest if colon and name.rpartition(".")[2].endswith("Error") else line
