# SPDX-License-Identifier: Apache-2.0
"""What counts as an input, in which order, and under which key."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery import InputError, Item, open_sources
from fiqa_fast.gallery.sources import FolderSource


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))


def items(inputs: Sequence[Any], **options: Any) -> list[Item]:
    return [item for source in open_sources(inputs, **options) for item in source]


def keys(inputs: Sequence[Any], **options: Any) -> list[str]:
    return [item.key for item in items(inputs, **options)]


def content(item: Item) -> bytes:
    with item.open() as file:
        return file.read()


def test_folders_are_walked_in_a_fixed_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.jpg", "a/b/c.png", "C.JPG", "a.jpg", "é.jpg", "a b\n,.jpg")
    expected = ["C.JPG", "a b\n,.jpg", "a.jpg", "a/b/c.png", "a/z.jpg", "b.jpg", "é.jpg"]
    assert sorted(keys([tmp_path])) == sorted(expected)
    assert keys([tmp_path]) == ["C.JPG", "a/b/c.png", "a/z.jpg", *expected[1:3], "b.jpg", "é.jpg"]
    assert content(items([tmp_path])[1]) == b"a/b/c.png"
    assert [source.count() for source in open_sources([tmp_path])] == [7]


def test_a_source_can_be_iterated_again(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    (source,) = open_sources([tmp_path])
    assert [i.key for i in source] == [i.key for i in source] == ["a.jpg", "b/c.jpg"]


def test_hidden_names_are_left_out_below_the_input_only(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "faces"
    touch(folder, "a.jpg", ".b.jpg", ".git/c.jpg", "d/.e/f.jpg", "d/g.jpg")
    assert keys([folder]) == ["a.jpg", "d/g.jpg"]


@pytest.mark.parametrize("ext", [["jpg", "png"], [".JPG", " .png "]])
def test_ext_narrows_folders(tmp_path: Path, ext: list[str]) -> None:
    touch(tmp_path, "a.jpg", "b.PNG", "c.txt", "jpg", "d.jpeg")
    assert keys([tmp_path], ext=ext) == ["a.jpg", "b.PNG"]
    with pytest.raises(InputError, match="no image with the suffix gif found in"):
        open_sources([tmp_path], ext=["gif"])
    with pytest.raises(InputError, match="--ext: wanted suffixes"):
        open_sources([tmp_path], ext=[" ", ""])


def test_links_pipes_and_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    touch(folder, "a.jpg", "sub/b.jpg")
    touch(outside, "c.jpg")
    (folder / "file link.jpg").symlink_to(outside / "c.jpg")
    (folder / "gone.jpg").symlink_to(outside / "gone")
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "sub" / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.jpg")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        (source,) = open_sources([folder])
        found = list(source)
    expected = ["a.jpg", "file link.jpg", "gone.jpg", "itself", "sub/b.jpg"]
    assert [item.key for item in found] == expected
    assert isinstance(source, FolderSource)
    assert source.skipped == 3
    assert content(found[1]) == b"c.jpg"
    for item in found[2:4]:
        with pytest.raises(ImageError, match=r"dangling link|symbolic links"):
            item.open()


def test_a_folder_that_cannot_be_listed_is_an_item_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg", "z.jpg")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = items([tmp_path])
    assert [item.key for item in found] == ["a.jpg", "locked/", "z.jpg"]
    with pytest.raises(OSError, match="cannot list this folder: permission denied"):
        found[1].open()
    with pytest.raises(InputError, match="locked: permission denied"):
        open_sources([tmp_path / "locked"])


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path, name)
    (item,) = items([tmp_path])
    assert item.key == "caf\\xe9.jpg"
    item.key.encode("utf-8")
    assert content(item) == b"caf\xe9.jpg"
    (item,) = items([tmp_path / name])
    assert item.key == "caf\\xe9.jpg"


def test_the_output_is_not_an_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "scores.csv", "sub/scores.csv")
    (tmp_path / "link").symlink_to(tmp_path / "scores.csv")
    assert keys([tmp_path], exclude=tmp_path / "scores.csv") == ["a.jpg", "sub/scores.csv"]
    several = [tmp_path / "scores.csv", tmp_path / "a.jpg"]
    assert keys([tmp_path], exclude=several) == ["sub/scores.csv"]


def test_an_input_that_is_the_output_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"list.txt: this is the output too"):
        open_sources([tmp_path / "list.txt"], exclude=tmp_path / "link.txt")


def test_single_files(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/b.jpg", "y/a.jpg")
    assert keys([tmp_path / "x" / "a.jpg"]) == ["a.jpg"]
    assert keys([tmp_path / "x" / "a.jpg", tmp_path / "x" / "b.jpg"]) == ["a.jpg", "b.jpg"]
    same = [str(tmp_path / "x" / "a.jpg"), str(tmp_path / "y" / "a.jpg")]
    assert keys(same) == same
    assert keys([tmp_path / "x" / "a.jpg"], ext=["png"]) == ["a.jpg"]  # named, so wanted


def test_several_inputs_prefix_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x/in/a.jpg", "y/in/a.jpg", "z/b.jpg", "c.jpg")
    (tmp_path / "list.txt").write_text("z/b.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert keys(["x/in", "z"]) == ["in/a.jpg", "z/b.jpg"]
    assert keys(["x/in/", "y/in", "z", "c.jpg", "list.txt"]) == [
        "x/in/a.jpg",
        "y/in/a.jpg",
        "z/b.jpg",
        "c.jpg",
        "list.txt/z/b.jpg",
    ]
    assert keys(["z", "."])[0] == "z/b.jpg"
    assert keys(["z", "."])[1] == f"{tmp_path.name}/c.jpg"
    with pytest.raises(InputError, match="z: this input is named twice"):
        open_sources(["z", "c.jpg", "z"])


def test_list_files(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a b.jpg", "c.jpg", os.fsdecode(b"\xe9.jpg"))
    absolute = os.fsencode(tmp_path / "c.jpg")
    lines = [b"sub/a b.jpg", b"", b"c.jpg\r", b"  \r", b"gone.jpg", b"../x.jpg", absolute]
    lines += [b"\xe9.jpg", b"a\0b", b"sub", b"c.jpg"]
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    found = items([listing])
    assert [item.key for item in found] == [
        "sub/a b.jpg",
        "c.jpg",
        "gone.jpg",
        "../x.jpg",
        str(tmp_path / "c.jpg"),
        "\\xe9.jpg",
        "a\\x00b",
        "sub",
        "c.jpg#2",
    ]
    readable = {0: b"sub/a b.jpg", 1: b"c.jpg", 4: b"c.jpg", 5: b"\xe9.jpg", 8: b"c.jpg"}
    for i, item in enumerate(found):
        if i in readable:
            assert content(item) == readable[i]
        else:
            with pytest.raises(ImageError):
                item.open()
    assert open_sources([listing])[0].count() == 9


def test_list_files_start_at_root(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jpg", "lists/keep")
    listing = tmp_path / "lists" / "list.txt"
    listing.write_text("a.jpg\n")
    (item,) = items([listing], root=tmp_path / "data")
    assert (item.key, content(item)) == ("a.jpg", b"data/a.jpg")
    (item,) = items([listing])
    with pytest.raises(ImageError, match="no such file"):
        item.open()
    with pytest.raises(InputError, match="--root: wanted a folder, got"):
        open_sources([listing], root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("missing", "missing: no such file or directory"),
        ("pipe", "pipe: wanted a folder or a file, got a pipe or a device"),
        ("empty", "no image found in .*empty"),
        ("blank.txt", "no image found in .*blank.txt"),
        ("utf16.txt", "wanted a list in UTF-8, got UTF-16"),
        ("a\0b", "null byte"),
    ],
)
def test_inputs_that_cannot_be_scored(tmp_path: Path, name: str, match: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "blank.txt").write_text("\n \n\r\n")
    (tmp_path / "utf16.txt").write_text("a.jpg\n", encoding="utf-16")
    with pytest.raises(InputError, match=match):
        open_sources([tmp_path / name])


def test_no_input_at_all() -> None:
    with pytest.raises(InputError, match="wanted at least one"):
        open_sources([])


def test_deep_folders(tmp_path: Path) -> None:
    depth = 300  # beyond what recursion with a few frames a level would survive cheaply
    path = tmp_path
    for _ in range(depth):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "a.jpg").write_bytes(b"")
    assert keys([tmp_path]) == ["d/" * depth + "a.jpg"]
