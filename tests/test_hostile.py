# SPDX-License-Identifier: Apache-2.0
"""Everything hostile that the project can think of, and what a user sees of it.

``FIQA_FAST_RENEW=1 pytest tests/test_hostile.py`` writes docs/hostile.md anew.
"""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import PIL
import pyarrow
import pytest
from command_line import table
from hostile import make_containers, make_folder, make_refusals
from limited import Run, run_limited

PAGE = Path(__file__).parents[1] / "docs" / "hostile.md"
SCORE = "a score"
MEMORY = 1600 * 2**20  # resident, of which the libraries take a third
SECONDS = 90


class Line(NamedTuple):
    name: str
    what: str
    saw: str

    def __str__(self) -> str:
        cells = (f"`{self.name}`" if self.name else "", self.what, self.saw)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def legible(text: str) -> str:
    text = text.encode("unicode_escape", "backslashreplace").decode().replace("\\\\", "\\")
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"


def said(text: str) -> str:
    return text if len(text) <= 240 else text[:237] + "..."


def of_images(words: dict[str, str], rows: dict[str, tuple[float, str]]) -> list[Line]:
    lines = []
    for name, what in words.items():
        key = os.fsencode(name).decode("utf-8", "backslashreplace")
        score, error = rows.pop(key, (None, "no row: passed over, and counted as that"))
        assert (score is None) != (error is None)
        lines.append(Line(legible(key), what, SCORE if error is None else said(error)))
    assert rows == {}
    return lines


def of_containers(words: dict[str, str], rows: dict[str, tuple[float, str]]) -> list[Line]:
    lines = []
    for name, what in words.items():
        here = {key: row for key, row in rows.items() if key.partition("/")[0] == name}
        scores = sum(error is None for _, error in here.values())
        saw = [f"{scores} score{'s' * (scores != 1)}"] if scores else []
        errors: dict[str, list[str]] = {}
        for key, (_, error) in here.items():
            if error is not None:
                errors.setdefault(error, []).append(key)
        for error, keys in errors.items():
            shown = legible(keys[0].partition("/")[2])
            start = f"`{shown}`: " if shown else ""
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            saw.append(f"{start}{said(error)}{more}")
        for key in here:
            del rows[key]
        lines.append(Line(name, what, "; ".join(saw[:4]) + ("; ..." if len(saw) > 4 else "")))
    assert rows == {}
    return lines


def checked(run: Run, status: int) -> None:
    """Neither crashed, nor hung, nor took more than its share."""
    assert run.status == status, run
    assert "Traceback" not in run.err
    assert run.peak < MEMORY, f"{run.peak / 2**20:.0f} MiB"
    assert run.seconds < SECONDS


class Seen(NamedTuple):
    images: list[Line]
    containers: list[Line]
    refused: list[Line]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("hostile")
    images = make_folder(folder / "images")
    containers = make_containers(folder / "containers")
    refusals = make_refusals(folder)
    commands = [
        ("score", "images", "-o", "images.parquet"),
        ("score", "containers/*", "-o", "containers.parquet"),
        *(refusal.args for refusal in refusals),
    ]
    of_folder, of_pattern, *others = run_limited(commands, folder)
    checked(of_folder, 0)
    checked(of_pattern, 1)
    refused = []
    for refusal, run in zip(refusals, others, strict=True):
        checked(run, 2)
        assert run.out == ""
        (line,) = run.err.splitlines()
        words = " ".join(legible(arg) for arg in refusal.args)
        refused.append(Line(words, refusal.what, said(line)))
    assert not list(folder.rglob("witness"))
    return Seen(
        of_images(images, table(folder / "images.parquet")),
        of_containers(containers, table(folder / "containers.parquet")),
        refused,
    )


START = """# Hostile input

Made by `FIQA_FAST_RENEW=1 pytest tests/test_hostile.py`; nothing here is written by hand. The test
makes each of these files, runs `fiqa-fast score` on them with {memory} MiB of resident memory and
{seconds} s at most, and compares what came with this page. Nothing ended a run early, and nothing
that a file names was run. Some texts are those of {versions}.
"""


def versions() -> str:
    found = importlib.util.find_spec("av") is not None
    video = f"PyAV {metadata.version('av')}" if found else "no PyAV"
    return f"Pillow {PIL.__version__}, pyarrow {pyarrow.__version__} and {video}"


def page(seen: Seen) -> str:
    head = START.format(versions=versions(), memory=MEMORY // 2**20, seconds=SECONDS)
    sections = (
        ("Images", "All in one folder, scored in one run of status 0.", seen.images),
        (
            "Containers and lists",
            "All scored by one pattern, `'containers/*'`, in one run of status 1: some were not "
            "read to their end.\nNamed alone, one that is not what its suffix says is refused.",
            seen.containers,
        ),
        ("Refusals", "One line each and status 2.", seen.refused),
    )
    text = head
    for title, words, lines in sections:
        first = "command line" if title == "Refusals" else "name"
        header = f"| {first} | hostile input | what the user saw |\n| --- | --- | --- |\n"
        body = "".join(f"{line}\n" for line in lines)
        text += f"\n## {title}\n\n{words}\n\n{header}{body}"
    return text


def kind(line: str) -> str:
    """A table's line without what a library's other version may say differently."""
    cells = line.split(" | ")
    return " | ".join((*cells[:-1], SCORE if SCORE in cells[-1] else "an error"))


def test_the_page_says_what_a_user_sees(seen: Seen) -> None:
    if os.environ.get("FIQA_FAST_RENEW"):
        PAGE.write_text(page(seen))
    stored, now = PAGE.read_text(), page(seen)
    if versions() in stored:
        assert stored == now
    else:
        lines = [[kind(x) for x in t.splitlines() if x.startswith("| `")] for t in (stored, now)]
        assert lines[0] == lines[1]
