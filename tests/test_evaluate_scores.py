# SPDX-License-Identifier: Apache-2.0
"""Which record belongs to which image, and the scores that come of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fiqa_fast.evaluate.readers.keys import MISSING, distinct, match, match_each, without_suffix
from fiqa_fast.evaluate.readers.scores import WORST, read_scores
from fiqa_fast.gallery import InputError, Rows, open_sink


def by_definition(key: str, have: Sequence[str]) -> int | None:
    """What the rule says of one key, read from it word by word; None: several fit."""
    if key in have:
        return have.index(key)
    same = [j for j, other in enumerate(have) if without_suffix(other) == without_suffix(key)]
    if len(same) == 1:
        return same[0]

    def common(other: str) -> int:
        ends = [without_suffix(path).split("/")[::-1] for path in (key, other)]
        n = 0
        for one, two in zip(*ends, strict=False):
            if one != two:
                break
            n += 1
        return n

    lengths = [common(other) for other in have]
    longest = max(lengths, default=0)
    best = [j for j, length in enumerate(lengths) if length == longest]
    if not longest:
        return MISSING
    return best[0] if len(best) == 1 else None


def test_keys_are_matched_as_the_rule_says() -> None:
    rng = random.Random(0)

    def path() -> str:
        depth = rng.randint(1, 4)
        name = "/".join(rng.choice("abc") for _ in range(depth))
        return name + rng.choice(["", ".jpg", ".png", ".x"])

    outcomes = {"found": 0, "missing": 0, "several": 0}
    for _ in range(3000):
        have = list({path() for _ in range(rng.randint(0, 6))})
        key = path()
        want = by_definition(key, have)
        if want is None:
            outcomes["several"] += 1
            with pytest.raises(InputError, match=r"^s\.csv: both '.*' and '.*' fit '"):
                match([key], have, "s.csv")
        else:
            outcomes["missing" if want == MISSING else "found"] += 1
            assert match([key], have, "s.csv").tolist() == [want], (key, have)
    assert min(outcomes.values()) > 100


def test_many_keys_at_once_are_matched_as_one_by_one() -> None:
    rng = random.Random(1)
    have = [f"{rng.choice('xy')}/{i % 7}/{i}.png" for i in range(200)]
    wanted = [f"/data/{key[:-4]}.jpg" for key in rng.sample(have, 100)]
    want = [by_definition(key, have) for key in wanted]
    assert match(wanted, have, "").tolist() == want


@pytest.mark.parametrize(
    ("key", "have", "found"),
    [
        ("a.b", ["a.b.jpg", "a.c.jpg"], 0),  # .b is no suffix of an image
        ("a.JPG", ["a.png"], 0),
        ("./a.jpg", ["a.jpg"], 0),
        ("/data/lfw/a/1.jpg", ["b/1.jpg", "lfw/a/1.jpg"], 1),
        ("a/1.jpg", ["1.npy"], 0),
        ("1.jpg", ["21.jpg"], MISSING),
        ("", ["a"], MISSING),
        ("a/1", [], MISSING),
    ],
)
def test_keys_that_matter(key: str, have: list[str], found: int) -> None:
    assert match([key], have, "").tolist() == [found]


def test_two_images_never_share_a_record() -> None:
    with pytest.raises(InputError, match=r"e: '1.npy' fits both 'a/1.jpg' and 'b/1.jpg'"):
        match_each(["a/1.jpg", "c/2.jpg", "b/1.jpg"], ["1.npy", "2.npy"], "e")


def test_an_image_without_a_record_gets_no_other_one() -> None:
    # b/1 failed, and c/1 is of another set: neither its name nor its end makes it b/1's.
    assert match(["a/2.jpg", "b/1.jpg"], ["a/2.jpg", "c/1.jpg"], "").tolist() == [0, MISSING]
    assert match(["a/2.jpg", "b/1.jpg"], ["a/2.png", "c/1.jpg"], "").tolist() == [0, MISSING]
    with pytest.raises(InputError, match=r"'b/1.jpg' and 'd/c/1.jpg' have the same end"):
        match(["a/2.jpg", "b/1.jpg"], ["d/a/2.jpg", "d/c/1.jpg"], "")
    with pytest.raises(InputError, match="have the same end"):
        match(["a/2.jpg", "ab/1.jpg"], ["2.jpg", "b/1.jpg"], "")
    flat = match(["a/2.jpg", "b/1.jpg"], ["all/1.png", "all/2.png"], "")
    assert flat.tolist() == [1, 0]
    moved = match(["/x/a/2.jpg", "/x/b/1.jpg"], ["y/z/b/1.png", "y/z/a/2.png"], "")
    assert moved.tolist() == [1, 0]


def test_records_of_one_name_and_two_suffixes() -> None:
    with pytest.raises(InputError, match=r"both 'a.png' and 'a.jpg' fit 'a'"):
        match(["b", "a"], ["a.png", "b.png", "a.jpg"], "")
    assert match(["b"], ["a.png", "b.png", "a.jpg"], "").tolist() == [1]


def test_matching_takes_linear_time() -> None:
    # Every folder has the same file names, and every path must be told by its third component.
    n = 100_000
    have = [f"root/{i // 10}/faces/{i % 10}.png" for i in range(n)]
    wanted = [f"/mnt/{i // 10}/faces/{i % 10}.jpg" for i in reversed(range(n))]
    start = time.thread_time()
    assert match(wanted, have, "").tolist() == list(reversed(range(n)))
    assert time.thread_time() - start < 30  # about one; a search per key would take hours


def test_distinct() -> None:
    records = distinct(["b", "a", "b", "c", "a"])
    assert records.keys == ["b", "a", "c"]
    assert records.first.tolist() == [0, 1, 3]
    assert records.number.tolist() == [0, 1, 0, 2, 1]


PATHS = ["x/a 1.jpg", "x/b.jpg", "x/c.jpg"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(path: Path, paths: Sequence[str] = PATHS, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_scores(path, paths, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "txt"])
def test_what_score_writes_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    sink = open_sink(str(path), ("score",), {})
    keys = [*PATHS[::-1], "other.jpg"]
    values = np.array([1, 0.1, np.nan, 7], np.float32)
    sink.write(Rows(keys, [None, None, "no such file", None], values))
    sink.commit()
    text = refusal(path)
    assert "mine: 1 of 3 images have no score, 'x/a 1.jpg' for one" in text
    scores = read_scores(path, PATHS, missing="worst")
    assert list(scores) == ["mine"]
    assert scores["mine"].dtype == np.float64
    assert np.allclose(scores["mine"], [WORST, 0.1, 1])
    assert read_scores(path, PATHS[1:])["mine"][1] == 1
    assert np.argmin(scores["mine"]) == 0  # discarded first


def test_the_papers_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "CR_lfw.txt", "/d/x/a 1.jpg 0.5\n\n/d/x/b.jpg\t-2\r\n/d/x/c.jpg 1e-3 \n"
    )
    scores = read_scores(path, PATHS)
    assert list(scores) == ["CR_lfw"]
    assert scores["CR_lfw"].tolist() == [0.5, -2, 1e-3]


def test_an_image_scored_once_per_pair(tmp_path: Path) -> None:
    again = write(tmp_path / "s.txt", "a 1\nb 2\na 1\nc nan\nc nan\n")
    assert read_scores(again, ["a", "b"])["s"].tolist() == [1, 2]
    differ = write(tmp_path / "s.txt", "a 1\nb 2\na 1.5\n")
    assert "s.txt, line 3: 'a' has two scores, 1.0 and 1.5" in refusal(differ, ["b", "a"])
    table = write(tmp_path / "s.csv", "path,score\na,1\na,2\n")
    assert "s.csv, line 3: 'a' has two scores" in refusal(table, ["a"])


def test_an_error_in_the_row_counts_more_than_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "path,score,error\na,0.5,\nb,0.25,cut off\n")
    assert "1 of 2 images have no score, 'b' for one" in refusal(path, ["a", "b"])
    assert read_scores(path, ["b", "a"], missing="worst")["s"].tolist() == [WORST, 0.5]


def test_columns_of_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "path,flag,q,score,r\na,1,0.5,3,0.25\nb,0,1,4,2\n")
    assert list(read_scores(path, ["a", "b"])) == ["s", "q", "r"]
    scores = read_scores(path, ["b", "a"], columns=["flag"])
    assert {name: values.tolist() for name, values in scores.items()} == {"flag": [0, 1]}
    assert "wanted a column 'z'" in refusal(path, ["a"], columns=["z"])
    whole = write(tmp_path / "w.csv", "path,flag\na,1\n")
    assert "got none with fractions" in refusal(whole, ["a"])
    called = write(tmp_path / "q.csv", "path,score,q\na,1,0.5\n")
    assert "both the file and a column are called 'q'" in refusal(called, ["a"])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("s.txt", "a 1\nb\n", "line 2: wanted 'path score', got 'b'"),
        ("s.txt", "a 1\nb x\n", "line 2: wanted 'path score'"),
        ("s.txt", "a inf\n", "line 1: wanted 'path score'"),
        ("s.txt", "", "wanted lines 'path score', got none"),
        ("s.txt", "y 1\nz 2\n", "none of the 3 images has a score here, 'x/a 1.jpg' for one"),
        ("s.csv", "path,score\na,x\n", "line 2: wanted a finite number as score, got 'x'"),
        ("s.csv", "path,score\na,inf\n", "line 2: wanted a finite number as score, got 'inf'"),
        ("s.csv", "name,score\na,1\n", "wanted a column 'path'"),
    ],
)
def test_scores_that_cannot_be_read(tmp_path: Path, name: str, text: str, reason: str) -> None:
    path = write(tmp_path / name, text)
    assert reason in refusal(path)
    assert reason in refusal(path, missing="worst")


def test_a_missing_file_and_a_wrong_option(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "gone.csv")
    path = write(tmp_path / "s.txt", "x/b.jpg 1\n")
    assert "--columns names a table's scores" in refusal(path, columns=["q"])
    with pytest.raises(ValueError, match="missing must be"):
        read_scores(path, PATHS, missing="zero")
