# SPDX-License-Identifier: Apache-2.0
"""Shares of a gallery: together everything, each image once, in one order; folders of parts."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from command_line import face, one_line_error
from containers import write_tar
from galleries import KeyContainer, KeySource, open_store, score_all
from hypothesis import given
from hypothesis import strategies as st

from fiqa_fast.gallery import InputError, OutputError
from fiqa_fast.gallery.dataset import join, part_path
from fiqa_fast.gallery.shares import Share, containers, from_environment, numbered, parse_share

SETTINGS = {"exit": 8}


def gallery(*sizes: int) -> list[Any]:
    """A container for each size, and loose images (a negative one) between."""
    sources: list[Any] = []
    for number, size in enumerate(sizes):
        kind = KeySource if size < 0 else KeyContainer
        sources.append(kind([f"{i}.jpg" for i in range(abs(size))], f"{number}/"))
    return sources


@given(
    st.lists(st.integers(-6, 6), max_size=9),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["keys", "containers"]),
)
def test_shares_are_everything_once_in_one_order(
    sizes: list[int], count: int, inner: int, by: str
) -> None:
    sources = gallery(*sizes)
    whole = dict(numbered(sources))
    assert [item.key for item in whole.values()] == [i.key for source in sources for i in source]
    assert sorted(whole) == list(whole)
    together: dict[int, str] = {}
    for index in range(count):
        share = Share(index, count, by)
        own = {place: item.key for place, item in numbered(sources, share)}
        parts: dict[int, str] = {}
        for part in range(inner):
            for place, item in numbered(sources, share.part(part, inner)):
                assert place not in parts
                parts[place] = item.key
        assert parts == own
        assert not own.keys() & together.keys()
        together |= own
    assert together == {place: item.key for place, item in whole.items()}


def test_whole_containers_go_to_one_share() -> None:
    sources = gallery(5, -3, 5, 5, 5)
    read: list[str] = []
    for source in sources:
        if isinstance(source, KeyContainer):
            source.keys = Recorded(source.keys, read, source.prefix)
    keys = [item.key for _, item in numbered(sources, Share(1, 2, "containers"))]
    assert read == ["2/", "4/"]
    assert {key[:2] for key in keys} - {"1/"} == {"2/", "4/"}
    assert containers(sources) == ["0/", "2/", "3/", "4/"]
    assert read == ["2/", "4/"]


class Recorded(list):  # type: ignore[type-arg]
    def __init__(self, keys: Any, read: list[str], name: str) -> None:
        super().__init__(keys)
        self.read, self.name = read, name

    def __iter__(self) -> Any:
        self.read.append(self.name)
        return super().__iter__()


def test_a_key_s_share_does_not_depend_on_the_gallery() -> None:
    few = [KeySource([f"{i}.jpg" for i in range(0, 100, 3)])]
    many = [KeySource([f"{i}.jpg" for i in range(100)])]
    for index in range(3):
        share = Share(index, 3)
        own = {item.key for _, item in numbered(many, share)}
        assert {item.key for _, item in numbered(few, share)} == own & {i.key for i in few[0]}
        assert 15 < len(own) < 55


@pytest.mark.parametrize(
    "text", ["", "3", "1/", "/4", "4/4", "-1/4", "1/0", "a/b", "1/2/3", "0 /2"]
)
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="wanted i/n with i from 0 to n - 1"):
        parse_share(text)


def test_share_of_torchrun() -> None:
    ranks = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert parse_share("7/8") == (7, 8)
    assert from_environment(ranks) == (3, 8, 1)
    assert from_environment({**ranks, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert from_environment({**ranks, "RANK": "9"}) is None
    assert from_environment({"RANK": "3"}) is None


def test_a_folder_holds_one_plan(tmp_path: Path) -> None:
    folder = str(tmp_path / "scores")
    names = ["a/", "b/", "c/"]
    assert join(folder, 0, 2, SETTINGS, names) == Share(0, 2, "containers")
    assert join(folder, 1, 2, SETTINGS, names) == Share(1, 2, "containers")
    with pytest.raises(OutputError, match=r"exit 4, not 8.*--overwrite"):
        join(folder, 1, 2, {"exit": 4}, names)
    with pytest.raises(OutputError, match="3 shares here, 2 there"):
        join(folder, 1, 3, SETTINGS, names)
    join(folder, 1, 2, SETTINGS, [*names, "d/"])
    for moved in (["a/", "aa/", "b/", "c/", "d/"], names, ["a/", "c/", "d/"]):
        with pytest.raises(OutputError, match="name new ones to come last"):
            join(folder, 1, 2, SETTINGS, moved)
    assert join(folder, 1, 3, {"exit": 4}, [], overwrite=True) == Share(1, 3)
    assert join(folder, 1, 3, {"exit": 4}, names) == Share(1, 3)  # what was decided first holds
    assert os.listdir(folder) == ["_gallery.json"]
    open_store(part_path(folder, 1, 3)).commit()
    join(folder, 1, 3, SETTINGS, names, overwrite=True)
    with pytest.raises(OutputError, match=r"another number of shares .part-00001-of-00003.parquet"):
        join(folder, 1, 4, SETTINGS, names, overwrite=True)
    (tmp_path / "scores" / "_gallery.json").unlink()  # as one is told to do with a damaged plan
    with pytest.raises(OutputError, match=r"another number of shares .part-00001-of-00003.parquet"):
        join(folder, 1, 4, SETTINGS, names)


def test_parts_are_one_dataset(tmp_path: Path) -> None:
    sources = gallery(7, -20, 4)
    keys = {item.key for source in sources for item in source}
    for index in range(3):
        share = join(str(tmp_path), index, 3, SETTINGS, containers(sources))
        score_all(open_store(part_path(str(tmp_path), index, 3)), sources, share)
    table = ds.dataset(tmp_path, format="parquet").to_table()
    assert sorted(table["path"].to_pylist()) == sorted(keys)
    assert pq.read_table(tmp_path).num_rows == len(keys)


def test_parts_of_two_plans_are_not_mixed(tmp_path: Path) -> None:
    """One share is replaced after a container was put before the others; the other is not yet."""
    old = gallery(3, 3, 3)
    new = [KeyContainer(["a.jpg"], "!/"), *old]

    def run(index: int, sources: list[Any], overwrite: bool) -> None:
        share = join(str(tmp_path), index, 2, SETTINGS, containers(sources), overwrite)
        path = part_path(str(tmp_path), index, 2)
        settings = {"share": vars(share)}
        score_all(open_store(path, settings=settings, overwrite=overwrite), sources, share)

    for index in range(2):
        run(index, old, overwrite=False)
    run(0, new, overwrite=True)
    with pytest.raises(OutputError, match=r"holds rows of other settings .share.*--overwrite"):
        run(1, new, overwrite=False)
    run(1, new, overwrite=True)
    keys = pq.read_table(tmp_path)["path"].to_pylist()
    assert sorted(keys) == sorted(item.key for source in new for item in source)


def test_a_plan_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        assert join(str(tmp_path), 1, 2, SETTINGS, ["a/", "b/"]) == Share(1, 2, "containers")
    assert os.listdir(tmp_path) == ["_gallery.json"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"settings": 3, "containers": null}'])
def test_a_damaged_plan_is_named(tmp_path: Path, content: str) -> None:
    join(str(tmp_path), 1, 2, SETTINGS, ["a/", "b/"])
    plan = tmp_path / "_gallery.json"
    found = json.loads(plan.read_text())
    plan.write_text(json.dumps({**found, **json.loads(content)}) if ":" in content else content)
    with pytest.raises(OutputError, match=r"_gallery.json: the plan of this folder is damaged"):
        join(str(tmp_path), 1, 2, SETTINGS, ["a/", "b/"])


# Through the command


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four archives of three images."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(4):
        images = {
            f"{i}.png": face(tmp_path / "x.png", 10 * shard + i).read_bytes() for i in range(3)
        }
        write_tar(folder / f"{shard}.tar", images)
    return folder


def test_shards_of_a_command(cli: Any, shards: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    assert cli("score", f"{shards}/*.tar", "-o", whole, "--quiet").status == 0
    parts = tmp_path / "parts"
    for index in (1, 0):
        outcome = cli("score", f"{shards}/*.tar", "-o", f"{parts}/", "--shard", f"{index}/2")
        assert outcome.status == 0, outcome.err
        assert "6 of 6 images scored" in outcome.err
    names = ["_gallery.json", "part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]
    assert sorted(os.listdir(parts)) == names
    plan = json.loads((parts / "_gallery.json").read_text())
    assert plan["by"] == "containers"
    both = pq.read_table(parts).sort_by("path")
    assert both.equals(pq.read_table(whole).sort_by("path"))
    again = cli("score", f"{shards}/*.tar", "-o", parts, "--shard", "0/2")
    assert "6 rows are there already" in again.err
    refused = cli("score", f"{shards}/*.tar", "-o", parts, "--shard", "0/2", "--exit", 3)
    assert "exit 3, not 8" in one_line_error(refused)
    message = one_line_error(cli("score", shards, "-o", tmp_path / "x.csv", "--shard", "0/2"))
    assert "x.csv: wanted a folder (-o DIR/), where every share writes a part of" in message


def test_ranks_of_torchrun_take_their_shares(
    cli: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "parts"
    for rank in range(2):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        assert cli("score", f"{shards}/*.tar", "-o", f"{parts}/", "--quiet").status == 0
    assert pq.read_table(parts).num_rows == 12


def test_a_folder_of_parts_in_the_gallery_is_no_input(cli: Any, gallery: Path) -> None:
    for _ in range(2):
        assert cli("score", gallery, "-o", f"{gallery}/scores/", "--strict").status == 0
    assert pq.read_table(gallery / "scores").num_rows == 7
