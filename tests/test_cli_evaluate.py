# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate``: every layout and form, its reports, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import face, one_line_error
from evaluation_sets import (
    EMBEDDINGS,
    FMR,
    LAYOUTS,
    SCORES,
    Faces,
    encoded,
    expected_area,
    in_pairs,
    make_faces,
    write_csv,
    write_images,
    write_parquet,
)
from onnx_bytes import mean_colour

import fiqa_fast
from fiqa_fast.cli import evaluate as evaluate_command
from fiqa_fast.images import decode

PARITY = Path(__file__).parent / "data" / "parity" / "edc_crfiqa.npz"
QUICK = ("--draws", 0, "--fmr", FMR, "--quiet")


@pytest.fixture
def faces() -> Faces:
    return make_faces()


@pytest.fixture
def table(faces: Faces, tmp_path: Path) -> Path:
    """DATA as a table with two scores, beside its embeddings."""
    names = [f"person {who}" for who in faces.whom]
    noisy = faces.quality + np.random.default_rng(8).normal(0, 0.3, len(faces))
    columns = {"path": faces.paths, "identity": names, "good": faces.quality, "noisy": noisy}
    EMBEDDINGS["npz"](faces, tmp_path)
    return write_csv(tmp_path / "tiny.csv", columns)


@pytest.fixture
def command(cli: Any, table: Path) -> Any:
    """Evaluates the table; arguments are added."""
    return lambda *args: cli("evaluate", table, "--embeddings", table.with_name("e.npz"), *args)


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in json.loads(path.read_text())["rows"]}


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test fail where anything is read before an option is refused."""

    def reading(*_: Any, **__: Any) -> None:
        raise AssertionError("DATA was read first")

    monkeypatch.setattr("fiqa_fast.evaluate.readers.datasets.open_dataset", reading)


def forms() -> Iterator[tuple[str, str, str]]:
    """Every layout, form of embeddings and form of scores at least once with each other's kinds."""
    for i, layout in enumerate(LAYOUTS):
        for j, embeddings in enumerate(EMBEDDINGS):
            yield layout, embeddings, list(SCORES)[(i + j) % len(SCORES)]


@pytest.mark.parametrize(("layout", "embeddings", "scores"), list(forms()))
def test_every_layout_and_form(
    cli: Any, tmp_path: Path, layout: str, embeddings: str, scores: str
) -> None:
    faces = make_faces()
    if layout == "bin":
        faces = in_pairs(faces)
    data = LAYOUTS[layout](faces, tmp_path)
    outcome = cli(
        "evaluate", data, "--scores", SCORES[scores](faces, tmp_path),
        "--embeddings", EMBEDDINGS[embeddings](faces, tmp_path), "-o", tmp_path / "o.json", *QUICK,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = rows(tmp_path / "o.json")
    assert set(found) == {"mine", "random"}
    fnmr, area = expected_area(faces, faces.quality)
    assert found["mine"]["fnmr"] == pytest.approx(fnmr, abs=1e-12)
    assert found["mine"]["pauc"] == pytest.approx(area, abs=1e-12)
    assert found["mine"]["pauc_ratio"] < 0.95 * found["random"]["pauc_ratio"]
    facts = json.loads((tmp_path / "o.json").read_text())["facts"]
    assert facts["genuine_pairs"] == np.count_nonzero(faces.genuine)
    assert facts["impostor_pairs"] == np.count_nonzero(~faces.genuine)
    assert outcome.out.startswith(f"{data.stem}: {len(faces)} images, ")


def test_scores_of_a_table_and_of_files(command: Any, faces: Faces, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    write_csv(other, {"path": faces.paths, "score": -faces.quality, "extra": faces.quality / 3})
    lines = SCORES["lines"](faces, tmp_path)
    output = tmp_path / "o.json"
    outcome = command("--scores", f"theirs={other}", "--scores", lines, "-o", output, *QUICK)
    assert outcome.status == 0, outcome.err
    found = rows(output)
    assert list(found) == ["good", "noisy", "theirs.other", "theirs.extra", "mine", "random"]
    assert found["mine"]["pauc"] == found["good"]["pauc"] == found["theirs.extra"]["pauc"]
    assert found["theirs.other"]["pauc_ratio"] > 1.1
    assert command("--columns", "noisy", "--no-random", "-o", output, *QUICK).status == 0
    assert list(rows(output)) == ["noisy"]
    wanted = "wanted a column 'nope', got path, identity, good, noisy"
    assert wanted in one_line_error(command("--columns", "nope", *QUICK))
    twice = one_line_error(command("--scores", lines, "--scores", lines))
    assert "there is a score called 'mine' already; give NAME=FILE" in twice
    assert "called 'good' already" in one_line_error(command("--scores", f"good={lines}"))
    assert "nothing.txt: no such file" in one_line_error(command("--scores", "x=nothing.txt"))


def test_a_set_without_scores(cli: Any, faces: Faces, tmp_path: Path) -> None:
    data = LAYOUTS["csv"](faces, tmp_path)  # its whole numbers are no scores
    embeddings = EMBEDDINGS["npz"](faces, tmp_path)
    line = one_line_error(cli("evaluate", data, "--embeddings", embeddings))
    assert "wanted quality scores, got none" in line


def test_a_matcher_instead_of_embeddings(cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    faces = make_faces(4, 3)
    data = write_images(faces, tmp_path / "in")
    for i, path in enumerate(faces.paths):
        face(data / path, i, 20)
    scores = SCORES["lines"](faces, tmp_path)
    matcher = tmp_path / "matcher.onnx"
    matcher.write_bytes(mean_colour(["n", 3, 24, 24]))
    options = ("--scores", scores, "-o", tmp_path / "o.json", *QUICK)
    outcome = cli("evaluate", data, "--matcher", matcher, *options)
    assert outcome.status == 0, outcome.err
    from fiqa_fast.images import fit

    pixels = [fit(decode(data / path), 24).planes.astype(np.float64) for path in faces.paths]
    faces.embeddings = np.stack([(p.mean((1, 2)) - 127.5) / 127.5 for p in pixels])
    fnmr, area = expected_area(faces, faces.quality)
    assert rows(tmp_path / "o.json")["mine"]["fnmr"] == pytest.approx(fnmr)
    assert rows(tmp_path / "o.json")["mine"]["pauc"] == pytest.approx(area)

    assert cli("evaluate", data, "--matcher", "starter", *options).status == 0
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"), outputs=("embedding",), gauge=None)
    embedding = scorer([data / path for path in faces.paths]).embedding
    assert embedding is not None
    faces.embeddings = embedding.numpy()
    assert rows(tmp_path / "o.json")["mine"]["pauc"] == pytest.approx(
        expected_area(faces, faces.quality)[1]
    )

    (data / faces.paths[3]).write_bytes(b"no image")
    line = one_line_error(cli("evaluate", data, "--matcher", matcher, *options))
    assert line.startswith(f"1 of 12 images cannot be embedded, for one {faces.paths[3]}: ")
    outcome = cli("evaluate", data, "--matcher", matcher, "--missing", "worst", *options)
    assert outcome.status == 0
    assert f"warning: {matcher}: 1 images without an embedding are left out" in outcome.err
    assert outcome.out.startswith("in: 11 images, ")

    table = write_csv(
        tmp_path / "t.csv", {"path": faces.paths, "identity": faces.whom, "q": faces.quality}
    )
    line = one_line_error(cli("evaluate", table, "--matcher", matcher))
    assert line == "t: wanted images for --matcher, got paths without files; give --root"
    outcome = cli(
        "evaluate", table, "--root", data, "--matcher", matcher, "--missing", "worst", *QUICK
    )
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "wanted the matcher's --embeddings, or a --matcher to compute them with; got none"),
        (("--embeddings", "e", "--matcher", "starter"), "got both"),
        (("--embeddings", "e", "--matcher-input", "bgr"), "--matcher-input goes with --matcher"),
        (("--embeddings", "e", "--fmr", "many"), "wanted rates such as 1e-2,1e-3, got 'many'"),
        (("--embeddings", "e", "--fmr", "0"), "must lie between 0 and 1, got 0.0"),
        (("--embeddings", "e", "--fmr", "2"), "must lie between 0 and 1, got 2.0"),
        (("--embeddings", "e", "--fmr", "nan"), "must lie between 0 and 1, got nan"),
        (("--embeddings", "e", "--fmr", ","), "needs at least one FMR"),
        (("--embeddings", "e", "--fnmr", "0.1"), "an FNMR belongs to dasec, got fixed-fmr"),
        (("--embeddings", "e", "--protocol", "erc"), "crfiqa, dasec, fixed-fmr, got 'erc'"),
        (("--embeddings", "e", "--protocol", ""), "protocols must be a sequence of names"),
        (("--embeddings", "e", "--limit", "1"), "limit must lie between 0.001 and 0.95, got 1.0"),
        (("--embeddings", "e", "--limit", "nan"), "limit must lie between 0.001 and 0.95, got nan"),
        (("--embeddings", "e", "--draws", "-1"), "-1 is not in the range"),
        (("--embeddings", "e", "--seed", "-1"), "-1 is not in the range"),
        (("--embeddings", "e", "--missing", "best"), "'best' is not one of"),
        (("--embeddings", "e", "-o", "o.xlsx"), "ending in .csv, .json, .md, .txt, got '.xlsx'"),
        (("--embeddings", "e", "-o", "/nowhere/o.csv"), "the folder /nowhere does not exist"),
        (("--embeddings", "e", "--plot", "/nowhere/o.svg"), "the folder /nowhere does not exist"),
        (("--embeddings", "e", "--plot", "o.jpg"), "ending in .png, .svg, .pdf, got '.jpg'"),
    ],
)
def test_options_are_refused_before_anything_is_read(
    cli: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    no_work(monkeypatch)
    assert words in one_line_error(cli("evaluate", "data.csv", *options))


def test_an_output_never_replaces_an_input(command: Any, table: Path) -> None:
    before = table.read_bytes()
    assert "this is an input too" in one_line_error(command("-o", table))
    link = table.with_name("link.csv")
    link.symlink_to(table)
    assert "this is an input too" in one_line_error(command("-o", link))
    scores = write_csv(table.with_name("s.csv"), {"path": ["a"], "score": [0.5]})
    assert "this is an input too" in one_line_error(
        command("--scores", f"s={scores}", "-o", scores)
    )
    assert table.read_bytes() == before


def test_a_wrong_baseline_is_refused_before_a_matcher_runs(cli: Any, table: Path) -> None:
    line = one_line_error(cli("evaluate", table, "--matcher", "nothing.onnx", "--baseline", "best"))
    assert line == "baseline must be one of good, noisy, random, got 'best'"


def test_sets_and_options_that_do_not_go_together(cli: Any, command: Any, tmp_path: Path) -> None:
    faces = make_faces(3, 3)
    reference = LAYOUTS["reference"](faces, tmp_path)
    embeddings = EMBEDDINGS["npy"](faces, tmp_path)
    options = ("--embeddings", embeddings, "--scores", SCORES["lines"](faces, tmp_path))
    line = one_line_error(cli("evaluate", reference, *options, "--max-impostors", 5))
    assert "--max-impostors goes with a set of which all pairs are compared" in line
    assert "this is no table" in one_line_error(cli("evaluate", reference, *options, "--columns=a"))
    assert "no such file or folder" in one_line_error(cli("evaluate", tmp_path / "gone", *options))
    assert "gone.npz: no such file" in one_line_error(command("--embeddings", "gone.npz"))


def test_reports(command: Any, tmp_path: Path) -> None:
    outputs = {kind: tmp_path / f"o.{kind}" for kind in ("csv", "json", "md", "txt")}
    options = ("--protocol", "all", "--fmr", "0.05,0.1,0.05", "--fnmr", "0.2", "--limit", "0.2")
    for kind, output in outputs.items():
        contents = []
        for _ in range(2):
            outcome = command(*options, "--draws", 20, "--baseline", "noisy", "-o", output)
            assert outcome.status == 0, outcome.err
            assert f"written to {output}" in outcome.err
            contents.append(output.read_bytes())
        assert contents[0] == contents[1], kind
    document = json.loads(outputs["json"].read_text())
    points = [("crfiqa", "FMR 0.05"), ("crfiqa", "FMR 0.1"), ("dasec", "FMR 0.05"),
              ("dasec", "FMR 0.1"), ("dasec", "FNMR 0.2"), ("fixed-fmr", "FMR 0.05"),
              ("fixed-fmr", "FMR 0.1")]  # fmt: skip
    got = [(row["protocol"], row["point"], row["method"]) for row in document["rows"]]
    assert got == [(*point, method) for point in points for method in ("good", "noisy", "random")]
    assert document["facts"]["limit"] == 0.2
    assert document["facts"]["baseline"] == "noisy"
    with open(outputs["csv"], newline="") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, document["rows"], strict=True):
        assert float(line["pauc"]) == row["pauc"]
        assert row["curve"]["between"] == ("step" if row["protocol"] == "dasec" else "line")
        assert row["curve"]["fnmr"][0] == pytest.approx(row["fnmr"], abs=1e-15)
        assert row["pauc_ratio_low"] <= row["pauc_ratio"] <= row["pauc_ratio_high"]
        if row["method"] == "noisy":
            assert line["difference"] == ""
            assert row["difference"] is None
        else:
            assert row["difference_low"] < row["difference_high"]
    good = next(row for row in document["rows"] if row["method"] == "good")
    noisy = next(row for row in document["rows"] if row["method"] == "noisy")
    assert good["difference"] == good["pauc_ratio"] - noisy["pauc_ratio"]
    text = outputs["txt"].read_text()
    assert text in outcome.out
    assert text.count("minus noisy") == len(points)
    assert outputs["md"].read_text().count("| score | pAUC to 0.2 | ratio |") == len(points)
    assert "fixed-fmr, FMR 0.1: threshold 0." in text


def test_without_draws_there_are_no_intervals(command: Any, tmp_path: Path) -> None:
    outcome = command("-o", tmp_path / "o.json", "--baseline", "noisy", *QUICK)
    assert outcome.status == 0
    for row in rows(tmp_path / "o.json").values():
        assert row["pauc_low"] is None
        assert row["difference_low"] is None
    assert "[" not in outcome.out
    assert rows(tmp_path / "o.json")["good"]["difference"] < 0


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_plots(command: Any, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path, contents = tmp_path / f"o.{kind}", []
    for _ in range(2):
        assert command("--plot", path, "--protocol", "dasec,fixed-fmr", *QUICK).status == 0
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    if kind == "svg":
        for words in (b"dasec, FMR 0.05", b"fixed-fmr, FMR 0.05", b"good", b"random"):
            assert words in contents[0]


def test_missing_scores_and_embeddings(cli: Any, faces: Faces, tmp_path: Path) -> None:
    data = LAYOUTS["folder"](faces, tmp_path)
    n = len(faces)
    score: list[float | None] = [float(q) for q in faces.quality]
    error: list[str | None] = [None] * n
    score[4], error[4] = None, "cannot be decoded"
    score[9], error[9] = None, "cannot be decoded"
    scores = write_parquet(
        tmp_path / "s.parquet",
        {"path": faces.paths[:-1], "score": score[:-1], "error": error[:-1]},
    )
    kept = np.arange(n) != 7
    part = Faces(
        [path for path, k in zip(faces.paths, kept, strict=True) if k],
        faces.whom[kept],
        np.where(np.isin(np.arange(n), (4, 9, n - 1)), -np.inf, faces.quality)[kept],
        faces.embeddings[kept],
        np.argwhere(np.triu(np.ones((n - 1, n - 1)), 1)),
    )
    embeddings = EMBEDDINGS["npz"](part, tmp_path)
    options = ("--scores", scores, "--embeddings", embeddings, *QUICK)
    line = one_line_error(cli("evaluate", data, *options))
    assert f"3 of {n} images have no score, {faces.paths[4]!r} for one" in line
    options += ("--missing", "worst", "-o", tmp_path / "o.json")
    outcome = cli("evaluate", data, *options)
    assert outcome.status == 0, outcome.err
    assert (
        f"warning: s: 3 of {n} images have no score and are discarded first, "
        f"{faces.paths[4]!r} for one" in outcome.err
    )
    assert "1 images without an embedding are left out" in outcome.err
    fnmr, area = expected_area(part, part.quality)
    assert rows(tmp_path / "o.json")["s"]["fnmr"] == pytest.approx(fnmr, abs=1e-12)
    assert rows(tmp_path / "o.json")["s"]["pauc"] == pytest.approx(area, abs=1e-12)
    whole = EMBEDDINGS["npz"](faces, tmp_path)
    outcome = cli("evaluate", data, "--scores", scores, "--embeddings", whole, *QUICK)
    assert "have no score" in one_line_error(outcome)
    SCORES["lines"](faces, tmp_path)
    EMBEDDINGS["npz"](part, tmp_path)
    outcome = cli("evaluate", data, "--scores", tmp_path / "mine.txt", *options[2:4])
    line = one_line_error(outcome)
    assert f"1 of {n} images have no embedding, {faces.paths[7]!r} for one" in line


def test_a_sample_of_the_impostors(command: Any, tmp_path: Path) -> None:
    outcome = command("--max-impostors", 300, "-o", tmp_path / "o.json", *QUICK)
    assert "300 impostor pairs drawn from 1650" in outcome.out
    facts = json.loads((tmp_path / "o.json").read_text())["facts"]
    assert facts["impostor_pairs"] == 300
    assert facts["impostor_pairs_sampled_from"] == 1650
    one = ("--max-impostors", 300, "--no-random", *QUICK)
    outcomes = {command(*one, "--seed", seed).out for seed in (0, 0, 1)}
    assert len(outcomes) == 2  # by the sample alone: the bootstrap and the control are off


def test_too_few_impostors_and_errors_are_said_on_stderr(command: Any) -> None:
    outcome = command("--draws", 0, "--quiet", "--fmr", "1e-4")
    assert outcome.status == 0
    assert "warning: FMR 0.0001 rests on 0.165 of 1650 impostor pairs" in outcome.err
    assert "warning" not in outcome.out
    outcome = command("--draws", 0, "--quiet", "--fmr", "0.04", "--columns", "good")
    (line,) = outcome.err.splitlines()
    assert line.startswith("warning: FMR 0.04 leaves ")
    assert line.endswith("among 120 genuine pairs: wanted 30 or more for any claim")
    assert (
        command("--draws", 0, "--quiet", "--protocol", "dasec", "--fnmr", "0.5").err.count("FNMR")
        == 0
    )


def test_help(cli: Any) -> None:
    outcome = cli("evaluate", "--help")
    assert outcome.status == 0
    for words in ("--embeddings", "--missing", "evaluate reproduce", "evaluate degrade"):
        assert words in outcome.out
    assert set(evaluate_command._STUDIES) == {"reproduce", "degrade"}
    for study in evaluate_command._STUDIES:
        assert f"fiqa-fast evaluate {study}" in cli("evaluate", study, "--help").out
    assert cli("evaluate").status == 2
    assert "(see fiqa-fast evaluate --help)" in one_line_error(cli("evaluate", "--wrong"))


def test_data_called_like_a_study(
    cli: Any, faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS["folder"](faces, tmp_path).rename(tmp_path / "reproduce")
    options = ("--scores", SCORES["lines"](faces, tmp_path),
               "--embeddings", EMBEDDINGS["npz"](faces, tmp_path), *QUICK)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli("evaluate", "./reproduce", *options).out.startswith("reproduce: 60 images")
    assert cli("evaluate", *options, "reproduce").out.startswith("reproduce: 60 images")


def test_damaged_embeddings_are_one_line(command: Any, table: Path) -> None:
    table.with_name("e.npz").write_bytes(encoded(0))
    assert "e.npz: damaged" in one_line_error(command(*QUICK))


def test_published_numbers_through_the_reference_layout(cli: Any, tmp_path: Path) -> None:
    """The 20 FNMRs at three operating points, and the areas, to the bit."""
    expected = np.load(PARITY)
    home = tmp_path / "quality_data" / "parity"
    (home / "images").mkdir(parents=True)
    features, quality = expected["features"], expected["image_quality"]
    assert features.dtype == np.float64
    names = [f"{i:05d}" for i in range(len(features))]
    paths = [f"quality_data/parity/images/{name}.jpg" for name in names]
    (home / "image_path_list.txt").write_text("\n".join(paths))
    pairs = zip(expected["pair_a"], expected["pair_b"], expected["same"], strict=True)
    lines = [f"{names[a]} {names[b]} {int(same)}\n" for a, b, same in pairs]
    (home / "pair_list.txt").write_text("".join(lines))
    (tmp_path / "emb").mkdir()
    for name, vector in zip(names, features, strict=True):
        np.save(tmp_path / "emb" / f"{name}.npy", vector)
    scores = tmp_path / "quality.txt"
    values = zip(paths, quality.tolist(), strict=True)
    scores.write_text("".join(f"{path} {q!r}\n" for path, q in values))
    outcome = cli(
        "evaluate", home, "--scores", scores, "--embeddings", tmp_path / "emb", "--no-random",
        "--protocol", "crfiqa", "--draws", 0, "-o", tmp_path / "o.json",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [row["point"] for row in found] == ["FMR 0.01", "FMR 0.001", "FMR 0.0001"]
    for row, name in zip(found, ("1e2", "1e3", "1e4"), strict=True):
        assert row["curve"]["discard"] == expected["discard"].tolist()
        assert row["curve"]["fnmr"] == expected[f"fnmr_{name}"].tolist()
        assert row["auc"] == float(expected[f"auc_{name}"])


def test_real_faces(cli: Any, needs_data: Path, tmp_path: Path) -> None:
    faces = needs_data / "faces"
    outcome = cli(
        "evaluate", faces / "crossq_protocol.csv", "--fmr", "1e-3", "-o", tmp_path / "o.json",
        "--embeddings", faces / "reference_edgeface_xs_embeddings.npz",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "FNMR 15.6" in outcome.out
    found = rows(tmp_path / "o.json")
    control = found["lightqnet100"]
    assert round(100 * control["fnmr"], 1) == 15.6
    assert round(control["pauc_ratio"], 3) == 0.499
    assert control["pauc_ratio_low"] == pytest.approx(0.432, abs=0.005)
    assert control["pauc_ratio_high"] == pytest.approx(0.566, abs=0.005)
    assert found["random"]["pauc_ratio"] == pytest.approx(1, abs=0.06)
    assert found["random"]["pauc_ratio_low"] < 1 < found["random"]["pauc_ratio_high"]
