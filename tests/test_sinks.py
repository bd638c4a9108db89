# SPDX-License-Identifier: Apache-2.0
"""Every table is read back, and none is ever half written."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fiqa_fast.gallery import OutputError, Rows, open_sink
from fiqa_fast.gallery.sinks import TerminalSink, parquet_table, plan_output

KEYS = ["a b.jpg", 'quote" and, comma.jpg', "line\nbreak.jpg", "é☃.jpg", "caf\\xe9.jpg", "=1+1"]
ERRORS = [None, "empty file, sadly", None, None, 'not "an" image', None]
SCORES = np.array([0.1, np.nan, -1e-7, 1 / 3, np.nan, 12345.678], np.float32)
SUFFIXES = [".parquet", ".csv", ".jsonl", ".txt"]
DESCRIPTION = {"method": "attn-fiqa", "exit": 8, "gauge": None, "version": "1"}


def rows(vectors: bool = False, n: int = len(KEYS)) -> Rows:
    columns = {}
    if vectors:
        rng = np.random.default_rng(0)
        columns = {
            "embedding": rng.standard_normal((n, 5)).astype(np.float32),
            "patch_map": rng.standard_normal((n, 2, 3)).astype(np.float32),
        }
    return Rows(KEYS[:n], ERRORS[:n], SCORES[:n], columns)


def write(path: Path, *parts: Rows) -> None:
    outputs = ["score", *(parts[0].columns if parts else ())]
    sink = open_sink(str(path), outputs, DESCRIPTION)
    for part in parts:
        sink.write(part)
    sink.commit()


def read(path: Path) -> list[tuple[str, Any, Any]]:
    """Read any table as (path, score or None, error or None)."""
    if path.suffix == ".parquet":
        table = pq.read_table(path).to_pydict()
        return list(zip(table["path"], table["score"], table["error"], strict=True))
    text = path.read_bytes().decode()
    if path.suffix == ".csv":
        with io.StringIO(text, newline="") as file:
            records = list(csv.DictReader(file))
        return [
            (r["path"], float(r["score"]) if r["score"] else None, r["error"] or None)
            for r in records
        ]
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines()]
        return [(r["path"], r["score"], r["error"]) for r in records]
    pairs = [line.rsplit(" ", 1) for line in text.split("\n")[:-1]]
    return [(key, None if score == "nan" else float(score), None) for key, score in pairs]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, rows(), rows(n=2))
    got = read(path)
    assert len(got) == 8
    for (key, score, error), (want_key, want_error, want_score) in zip(
        got, [*zip(KEYS, ERRORS, SCORES, strict=True)] * 2, strict=False
    ):
        if suffix == ".txt":
            assert key == want_key.replace("\n", "\\n")
        else:
            assert key == want_key
            assert error == want_error
        if want_error is None:
            assert np.float32(score) == want_score
        else:
            assert score is None


def test_text_scores_are_the_shortest_that_round_trip(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".txt"):
        write(tmp_path / f"out{suffix}", rows())
        text = (tmp_path / f"out{suffix}").read_text()
        assert "0.1" in text
        assert "0.33333334" in text
        assert "0.10000000149" not in text
        assert "0.3333333432" not in text


def test_csv_has_its_header_and_unix_line_ends(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", rows(n=1))
    assert (tmp_path / "out.csv").read_bytes() == b"path,score,error\na b.jpg,0.1,\n"


def test_text_is_the_papers_format(tmp_path: Path) -> None:
    write(tmp_path / "out.txt", rows(n=2))
    expected = 'a b.jpg 0.1\nquote" and, comma.jpg nan\n'
    assert (tmp_path / "out.txt").read_text() == expected


def test_parquet_types_vectors_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    part = rows(vectors=True)
    write(path, part, part)
    table = pq.read_table(path)
    assert [(f.name, str(f.type)) for f in table.schema] == [
        ("path", "string"),
        ("score", "float"),
        ("error", "string"),
        ("embedding", "list<element: float>"),
        ("patch_map", "list<element: float>"),
    ]
    assert json.loads(table.schema.metadata[b"fiqa_fast"]) == DESCRIPTION
    assert table.schema.field("patch_map").metadata[b"shape"] == b"[2, 3]"
    assert table.schema.field("embedding").metadata[b"shape"] == b"[5]"
    for name, values in part.columns.items():
        got = table[name].to_pylist()
        for i, error in enumerate(ERRORS * 2):
            if error is None:
                np.testing.assert_array_equal(np.float32(got[i]), values[i % 6].reshape(-1))
            else:
                assert got[i] is None


def test_parquet_writes_row_groups_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_table, "_GROUP_ROWS", 10)
    path = tmp_path / "out.parquet"
    write(path, *[rows(vectors=True)] * 7)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        10,
        10,
        10,
        10,
        2,
    ]
    assert file.read()["path"].to_pylist() == KEYS * 7
    monkeypatch.setattr(parquet_table, "_GROUP_BYTES", 4 * 12 * 6)
    write(path, *[rows(vectors=True)] * 7)
    assert pq.ParquetFile(path).num_row_groups == 7


def test_json_lines_nest_maps_and_have_no_nan(tmp_path: Path) -> None:
    part = rows(vectors=True)
    part.columns["embedding"][0, 0] = np.nan
    write(tmp_path / "out.jsonl", part)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert np.array_equal(np.float32(records[0]["patch_map"]), part.columns["patch_map"][0])
    assert records[0]["embedding"][0] is None
    assert records[1]["embedding"] is None
    assert records[1]["patch_map"] is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_table_is_a_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path)
    assert read(path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_abort_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("precious")
    sink = open_sink(str(path), ["score"], DESCRIPTION)
    sink.write(rows())
    assert path.read_text() == "precious"
    assert all(name.startswith(".") for name in os.listdir(tmp_path) if name != path.name)
    sink.abort()
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_commit_replaces_and_keeps_modes_and_links(tmp_path: Path, suffix: str) -> None:
    real, link = tmp_path / f"real{suffix}", tmp_path / f"link{suffix}"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write(link, rows())
    assert link.is_symlink()
    assert len(read(real)) == 6
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == sorted([real.name, link.name])


def test_new_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write(tmp_path / "out.csv", rows())
    modes = [(tmp_path / name).stat().st_mode for name in ("ordinary", "out.csv")]
    assert modes[0] == modes[1]


def test_names_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 239 + ".csv")  # and .record.json
    write(path, rows())
    assert len(read(path)) == 6


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("out.xlsx", r"wanted a name ending in .parquet, .csv, .jsonl or .txt, got '.xlsx'"),
        ("out", "got 'none'"),
        ("nowhere/out.csv", "the folder .*nowhere does not exist"),
        ("folder.csv", "wanted a file to write, got a folder"),
        ("pipe.csv", "wanted a file to write, got a folder, pipe or device"),
    ],
)
def test_targets_that_cannot_be_written(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(OutputError, match=match):
        plan_output(str(tmp_path / name))
    with pytest.raises(OutputError, match=match):
        open_sink(str(tmp_path / name), ["score"], {})


@pytest.mark.parametrize("protect", ["folder", "file"])
def test_targets_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protect: str
) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    locked = tmp_path if protect == "folder" else path
    # Not by chmod, which does not stop root.
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != locked)
    with pytest.raises(OutputError, match="must not be written"):
        plan_output(str(path))


@pytest.mark.parametrize("target", ["out.csv", "out.txt"])
def test_tables_of_single_values_refuse_vector_columns(tmp_path: Path, target: str) -> None:
    with pytest.raises(OutputError, match=r"cannot hold embedding, patch_map: use -o with a .parq"):
        plan_output(str(tmp_path / target), ["score", "embedding", "patch_map"], "columns")


def test_formats_say_whether_errors_have_a_column(tmp_path: Path) -> None:
    holds = {suffix: plan_output(str(tmp_path / f"x{suffix}")).format.errors for suffix in SUFFIXES}
    assert holds == {".parquet": True, ".csv": True, ".jsonl": True, ".txt": False}


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_terminal_rows() -> None:
    stream = Stream(terminal=False)
    TerminalSink(stream).write(rows(n=3))
    assert stream.getvalue() == "a b.jpg 0.100000\nline\\nbreak.jpg -0.000000\n"
    stream = Stream(terminal=True)
    TerminalSink(stream).write(Rows(["a", "long.jpg"], [None, None], SCORES[[0, 3]]))
    assert stream.getvalue() == "a        0.100000\nlong.jpg 0.333333\n"
