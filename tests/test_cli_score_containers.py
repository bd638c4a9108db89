# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score`` on containers: the scores of a folder of the same images."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, table
from containers import WRITERS, write_saved, write_tar

CROPS = Path(__file__).parent.parent / "examples" / "crops"


def crops() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(CROPS.iterdir())}


@pytest.mark.parametrize("name", [*WRITERS, "saved"])
def test_every_container_gives_the_scores_of_the_folder(
    cli: Any, tmp_path: Path, name: str
) -> None:
    path = WRITERS.get(name, write_saved)(tmp_path / name, crops())
    assert cli("score", CROPS, "-o", tmp_path / "folder.csv", "--quiet").status == 0
    outcome = cli("score", path, "-o", tmp_path / "out.csv")
    assert outcome.status == 0, outcome.err
    assert f"{len(crops())} of {len(crops())} images scored" in outcome.err
    folder, got = (
        [(line.split(",")[-2], line.split(",")[0]) for line in text.read_text().splitlines()[1:]]
        for text in (tmp_path / "folder.csv", tmp_path / "out.csv")
    )
    assert [score for score, _ in got] == [score for score, _ in folder]
    if name.partition(".")[2] not in ("rec", "bin"):
        assert got == folder


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_an_archive_from_standard_input(cli: Any, tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / name, crops())
    assert cli("score", path, "-o", tmp_path / "file.parquet").status == 0
    with open(path, "rb") as file:
        got = subprocess.run(
            [*COMMAND, "score", "-", "-o", tmp_path / "piped.parquet"],
            stdin=file,
            capture_output=True,
            text=True,
            check=False,
        )
    assert got.returncode == 0, got.stderr
    assert table(tmp_path / "piped.parquet") == table(tmp_path / "file.parquet")


def test_an_archive_that_is_cut_off(cli: Any, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", crops())
    os.truncate(path, path.stat().st_size - 30_000)
    outcome = cli("score", path, "-o", tmp_path / "out.parquet")
    assert outcome.status == 1
    assert f"not read to its end: {path}: the archive is cut off" in outcome.err
    rows = list(table(tmp_path / "out.parquet").items())
    assert len(rows) > 3
    assert rows[-1][0] == "(rest of x.tar)"
    assert rows[-1][1] == (None, "the archive is cut off")
    assert all(error is None for _, (_, error) in rows[:-1])


def test_a_pattern(cli: Any, tmp_path: Path) -> None:
    for half in (0, 1):
        write_tar(tmp_path / f"{half}.tar", dict(list(crops().items())[half::2]))
    outcome = cli("score", f"{tmp_path}/*.tar", "-o", tmp_path / "out.parquet")
    assert outcome.status == 0, outcome.err
    assert set(table(tmp_path / "out.parquet")) == {
        f"{i % 2}.tar/{name}" for i, name in enumerate(crops())
    }


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.rec", "x.bin", "x.parquet", "x.lmdb"])
@pytest.mark.parametrize("content", [b"", b"no such thing " * 400])
def test_containers_that_are_none(cli: Any, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    outcome = cli("score", tmp_path / name)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert name in outcome.err
