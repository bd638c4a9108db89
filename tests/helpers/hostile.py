# SPDX-License-Identifier: Apache-2.0
"""What is hostile besides images and containers: files of other kinds, lists, checkpoints, names.

All that somebody could hand to ``fiqa-fast score``, and the page that shows what came of it.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from hostile_containers import Evil, crops, hostile_containers
from hostile_images import encoded, hostile_images


class Refusal(NamedTuple):
    """A command line that is refused; ``make`` puts into the folder what it names."""

    what: str
    args: tuple[str, ...]
    make: Callable[[Path], object]


def make_folder(folder: Path) -> dict[str, str]:
    """Fill a folder with hostile files; return in words what each is, by name."""
    folder.mkdir()
    words = {}
    for name, what, data in hostile_images():
        path = folder / name
        path.write_bytes(data)
        words[name] = what
    image = encoded("PNG")
    for name in ("same.png", "same copy.png"):
        (folder / name).write_bytes(image)
        words[name] = "one of two files of the same bytes"
    (folder / "dangling.png").symlink_to("nowhere.png")
    words["dangling.png"] = "a link that leads nowhere"
    (folder / "itself.png").symlink_to("itself.png")
    words["itself.png"] = "a link to itself"
    (folder / "zero.png").symlink_to("/dev/zero")
    words["zero.png"] = "a link to a device"
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    words["loop"] = "a link to the folder it is in"
    os.mkfifo(folder / "pipe.png")
    words["pipe.png"] = "a pipe"
    with open(folder / "hole.png", "wb") as file:
        file.truncate(2**40)
    words["hole.png"] = "a file of 1 TiB that takes no room"
    with open(folder / "hole.webp", "wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(2**34)
    words["hole.webp"] = "a WebP of 16 GiB that takes no room"
    return words


def make_containers(folder: Path) -> dict[str, str]:
    """Fill a folder with hostile containers; return in words what each is, by name."""
    folder.mkdir()
    words = {}
    for name, what, make in hostile_containers():
        make(folder / name)
        words[name] = what
    for path in sorted(folder.glob("*.idx")):
        words[path.name] = "an .idx that the pattern matches, too"
    lines = [b"a\0b.png", b"/dev/zero", b"../../../etc/passwd", b"\xff\xfe.png", b"x" * 10_000_000]
    lines += [b"text.tar", b"/dev/stdin", b"."]
    (folder / "list.txt").write_bytes(b"\n".join(lines))
    words["list.txt"] = "a list with a NUL, a line of 10 MB, devices, paths elsewhere, a folder"
    (folder / "utf16.txt").write_bytes("a.png\n".encode("utf-16"))
    words["utf16.txt"] = "a list in UTF-16"
    with open(folder / "hole.txt", "wb") as file:
        file.truncate(2**29)
    words["hole.txt"] = "a list of one line of 512 MiB"
    return words


def _checkpoint(name: str, legacy: bool = False) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        content = {"patch_embed.proj.weight": torch.zeros(1), "x": Evil(folder / "witness")}
        torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)

    return make


def _safetensors(name: str, header: bytes, length: int | None = None) -> Callable[[Path], object]:
    length = len(header) if length is None else length
    return lambda folder: (folder / name).write_bytes(struct.pack("<Q", length) + header)


def _file(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _pipe(name: str) -> Callable[[Path], object]:
    return lambda folder: os.mkfifo(folder / name)


def _link(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).symlink_to(name)


def _empty(folder: Path) -> None:
    (folder / "empty").mkdir()


def _elsewhere(folder: Path) -> None:
    (folder / "stored").mkdir()
    content = '{"_data_files": [{"filename": "../../etc/passwd"}]}'
    (folder / "stored" / "state.json").write_text(content)


def _nothing(folder: Path) -> None:
    """The machine has it."""


def refusals() -> list[Refusal]:
    """All of them, in the order of the page."""
    model = ("score", "good.png", "--model")
    big = (
        b'{"patch_embed.proj.weight":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
    )
    beyond = b'{"patch_embed.proj.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,99999]}}'
    plain = io.BytesIO()
    pickle.dump({"a": 1}, plain)
    listed = [
        Refusal("a pipe as INPUT", ("score", "fifo"), _pipe("fifo")),
        Refusal("a pipe that is called .tar", ("score", "fifo.tar"), _pipe("fifo.tar")),
        Refusal("a device as INPUT", ("score", "/dev/zero"), _nothing),
        Refusal("a link to itself as INPUT", ("score", "self"), _link("self")),
        Refusal("an INPUT that is not there", ("score", "nowhere"), _nothing),
        Refusal("an empty folder", ("score", "empty"), _empty),
        Refusal("a name that is not UTF-8", ("score", "\udcff.png"), _nothing),
        Refusal("a name with a line break", ("score", "a\nb"), _nothing),
        Refusal("a name of 5000 letters", ("score", "x" * 5000), _nothing),
        Refusal("a thousand million names", ("score", "x{0..999999999}.tar"), _nothing),
        Refusal(
            "a folder of save_to_disk whose files are elsewhere", ("score", "stored"), _elsewhere
        ),
        Refusal("nothing on standard input", ("score", "-"), _nothing),
        Refusal("a checkpoint that runs a command", (*model, "evil.pt"), _checkpoint("evil.pt")),
        Refusal(
            "the same in the old form", (*model, "old.pth"), _checkpoint("old.pth", legacy=True)
        ),
        Refusal(
            "a bare pickle that runs a command",
            (*model, "bare.pt"),
            lambda f: (f / "bare.pt").write_bytes(pickle.dumps(Evil(f / "witness"))),
        ),
        Refusal("a bare pickle", (*model, "plain.pt"), _file("plain.pt", plain.getvalue())),
        Refusal("an empty checkpoint", (*model, "empty.pt"), _file("empty.pt", b"")),
        Refusal("a checkpoint that is a pipe", (*model, "fifo.pt"), _pipe("fifo.pt")),
        Refusal("a checkpoint that is a device", (*model, "/dev/zero"), _nothing),
        Refusal(
            "safetensors whose header has 2^60 bytes",
            (*model, "header.safetensors"),
            _safetensors("header.safetensors", b"{}", 2**60),
        ),
        Refusal(
            "safetensors of a tensor of 4 TiB",
            (*model, "shape.safetensors"),
            _safetensors("shape.safetensors", big + bytes(4), len(big)),
        ),
        Refusal(
            "safetensors whose data lie beyond the end",
            (*model, "beyond.safetensors"),
            _safetensors("beyond.safetensors", beyond),
        ),
        Refusal(
            "a gauge that runs a command",
            ("score", "good.png", "--gauge", "gauge.safetensors"),
            lambda f: (f / "gauge.safetensors").write_bytes(pickle.dumps(Evil(f / "witness"))),
        ),
        Refusal(
            "a gauge that is a pipe", ("score", "good.png", "--gauge", "fifo.g"), _pipe("fifo.g")
        ),
    ]
    for name, what, _ in hostile_containers():
        if name in ("evil.bin", "text.tar", "footer.parquet", "cut.zip"):
            listed.append(
                Refusal(f"{what}, named alone", ("score", f"containers/{name}"), _nothing)
            )
    return listed


def make_refusals(folder: Path) -> list[Refusal]:
    """Put into a folder what the refused command lines name."""
    (folder / "good.png").write_bytes(next(iter(crops().values())))
    listed = refusals()
    for refusal in listed:
        refusal.make(folder)
    return listed
