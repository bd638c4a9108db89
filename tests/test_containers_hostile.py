# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile containers: rows with errors or one-line refusals, and nothing worse."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from containers import WRITERS

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery import InputError, open_sources

JPEG = b"\xff\xd8\xff"
IMAGES = {f"p{i // 4}/{i:02}.jpg": JPEG + bytes([i]) * (i * 277 % 2500) for i in range(10)}
ROUNDS = int(os.environ.get("FIQA_FAST_FUZZ_ROUNDS", "60"))  # of each container
EXTREMES = [0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 50))):
        place = rng.randrange(max(1, len(changed)))
        # Lengths and offsets stand at the ends of many formats.
        place = rng.choice((place, place, place % 64, len(changed) - 1 - place % 200))
        place = max(0, place)
        kind = rng.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[place : place + 1] = bytes(
                [changed[place] ^ 1 << rng.randrange(8)] if changed[place:] else []
            )
        elif kind == 2:
            size = rng.choice((2, 4, 8))
            value = rng.choice(EXTREMES) % 256**size
            changed[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[place:]
        elif kind == 4:
            del changed[place : place + rng.choice((1, 4, 512))]
        else:
            start = rng.randrange(max(1, len(changed)))
            changed[place:place] = changed[start : start + rng.choice((4, 64, 512))]
    return bytes(changed)


def one_line(error: Exception) -> None:
    assert str(error).isprintable(), str(error)


def survive(path: Path) -> tuple[int, int]:
    """Read all that can be read; return the numbers of images and of errors."""
    try:
        (source,) = open_sources([path])
    except InputError as error:
        one_line(error)
        return 0, 1
    good = bad = 0
    keys = set()
    assert source.count() is None or source.count() >= 0
    for item in source:
        assert item.key not in keys
        keys.add(item.key)
        item.key.encode()
        try:
            with item.open() as file:
                file.read()
            good += 1
        except (ImageError, OSError) as error:
            one_line(error)
            bad += 1
    return good, bad


@pytest.mark.parametrize("name", [*WRITERS, "x.idx"])
def test_mutations(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.idx":
        path = WRITERS["x.rec"](tmp_path / "x.rec", IMAGES)
        target = path.with_suffix(".idx")
    else:
        target = path = WRITERS[name](path, IMAGES)
    data = target.read_bytes()
    rng = random.Random(name)
    survived = 0
    for number in range(ROUNDS):
        case = mutated(data, rng)
        target.write_bytes(case)
        start = time.monotonic()
        tracemalloc.start()
        try:
            good, bad = survive(path)
            _, peak = tracemalloc.get_traced_memory()
        except Exception as error:
            raise AssertionError(f"round {number} of {name}: {error!r}") from error
        finally:
            tracemalloc.stop()
        assert peak < 80 * 2**20, f"round {number}"
        assert time.monotonic() - start < 10, f"round {number}"
        assert good + bad < 20 * len(IMAGES) + len(data) // 8
        survived += good > 0
    assert survived  # most damage costs a part, not all


@pytest.mark.parametrize("name", [*WRITERS])
def test_every_truncation(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, IMAGES)
    data = path.read_bytes()
    for end in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:end])
        good, bad = survive(path)
        assert bad or good == len(IMAGES)  # the padding alone is missing
        assert good <= len(IMAGES)


@pytest.mark.parametrize("name", [*WRITERS])
def test_files_that_shrink_while_they_are_read(tmp_path: Path, name: str) -> None:
    images = {f"{i:05}.jpg": os.urandom(3000) for i in range(300)}
    path = WRITERS[name](tmp_path / name, images)
    (source,) = open_sources([path])
    errors = 0
    for number, item in enumerate(source):
        if number == 20:
            os.truncate(path, 150_000)
        try:
            item.open().close()
        except (ImageError, OSError):
            errors += 1
    assert errors
