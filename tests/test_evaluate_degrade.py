# SPDX-License-Identifier: Apache-2.0
"""The degradation study: its statistics against scipy, its command line, what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import face
from PIL import Image
from scipy.stats import spearmanr

from fiqa_fast import QualityResult, Scorer, degradations, load_model
from fiqa_fast.cli import evaluate_degrade
from fiqa_fast.cli.errors import STRICT, explain
from fiqa_fast.evaluate.studies.degrade import LEVELS, degrade_study, summarise
from fiqa_fast.evaluate.studies.degrade_report import table
from fiqa_fast.figures import check_figure
from fiqa_fast.gallery.errors import InputError, OutputError
from fiqa_fast.ranks import spearman

TYPES = degradations.TYPES
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def crops(count: int, size: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]


class Recorder:
    """A scorer that keeps what it was asked, and answers with a function of the image."""

    def __init__(self, function: Callable[[np.ndarray], float]) -> None:
        self.calls: list[list[np.ndarray]] = []
        self._function = function

    def __call__(self, images: list[np.ndarray]) -> list[float]:
        self.calls.append([image.copy() for image in images])
        return [self._function(image) for image in images]


@pytest.mark.parametrize("distinct", [2, 5, 1000])
def test_spearman_with_ties_is_scipys(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    for _ in range(20):
        a, b = rng.integers(0, distinct, (2, 50))
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert spearman(a, -b / 7) == pytest.approx(-spearman(a, b), abs=1e-12)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([], []))
    assert math.isnan(spearman([1, math.nan, 3], [1, 2, 3]))
    assert spearman([-math.inf, 0, math.inf], [1, 2, 3]) == pytest.approx(1)
    with pytest.raises(ValueError, match="of one length, got 2 and 3"):
        spearman([1, 2], [1, 2, 3])


def test_every_version_of_every_image_is_scored_once() -> None:
    images = crops(3)
    scorer = Recorder(lambda image: float(image.mean()))
    study = degrade_study(iter(images), scorer, ("dark", "noise"), seed=4, draws=5)
    assert study.scores.shape == (3, 2, 6)
    for number, (image, call) in enumerate(zip(images, scorer.calls, strict=True)):
        assert np.array_equal(call[0], image)
        assert (study.scores[number, :, 0] == image.mean()).all()
        for i, kind in enumerate(("dark", "noise")):
            for level in LEVELS[1:]:
                # The same generator at every level: the same noise, only stronger.
                rng = np.random.default_rng((4, number, TYPES.index(kind)))
                expected = degradations.degrade(image, kind, level, rng)
                assert np.array_equal(call[5 * i + level], expected)
                assert study.scores[number, i, level] == expected.mean()


def test_the_damage_does_not_depend_on_the_other_types() -> None:
    scorer = Recorder(lambda image: float(image.std()))
    both = degrade_study(crops(2), scorer, ("occl", "noise", "occl"), draws=2).scores
    assert both.shape[1] == 2
    assert np.array_equal(both[:, 1:], degrade_study(crops(2), scorer, ("noise",), draws=2).scores)


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    # With ties, within images and between them.
    scores = np.round(rng.normal(size=(30, 2, 6)) - 0.4 * np.array(LEVELS), 1)
    scores[3, 0] = 0.5
    curves = summarise(scores, ("gblur", "occl"), draws=50)
    for i, curve in enumerate(curves):
        levels = np.tile(LEVELS, 30)
        pooled = spearmanr(levels, scores[:, i].ravel()).statistic
        assert curve.pooled.value == pytest.approx(pooled, abs=1e-12)
        own = [spearmanr(LEVELS, row).statistic for row in scores[:, i] if np.ptp(row) > 0]
        assert curve.within.value == pytest.approx(np.mean(own), abs=1e-12)
        assert curve.undefined == 30 - len(own) == (1 - i)
        assert curve.monotone == np.mean([(np.diff(row) < 0).all() for row in scores[:, i]])
        assert [mean.value for mean in curve.mean] == pytest.approx(scores[:, i].mean(0))
        quartiles = np.percentile(scores[:, i], (25, 75), axis=0).T
        assert np.allclose(curve.quartiles, quartiles)


def test_intervals_are_those_of_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(12, 1, 6)) - 0.3 * np.array(LEVELS)
    (curve,) = summarise(scores, ("gblur",), seed=9, draws=200)
    draws = np.random.default_rng(9)
    pooled, within, clean = [], [], []
    for _ in range(200):
        sample = scores[draws.integers(12, size=12), 0]
        pooled.append(spearmanr(np.tile(LEVELS, 12), sample.ravel()).statistic)
        within.append(np.mean([spearmanr(LEVELS, row).statistic for row in sample]))
        clean.append(sample[:, 0].mean())
    for estimate, values in (
        (curve.pooled, pooled),
        (curve.within, within),
        (curve.mean[0], clean),
    ):
        low, high = np.percentile(values, (2.5, 97.5))
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
        assert estimate.low < estimate.value < estimate.high


def test_a_perfect_a_reversed_and_a_constant_score() -> None:
    def level_of(call: list[np.ndarray]) -> np.ndarray:
        return np.arange(len(call))  # of one type, in order

    falling = degrade_study(crops(4), lambda call: -level_of(call), ("dark",), draws=20).curves[0]
    assert (falling.pooled.value, falling.within.value, falling.monotone) == (-1, -1, 1)
    assert falling.within.low == falling.within.high == -1
    rising = degrade_study(crops(4), level_of, ("dark",), draws=20).curves[0]
    assert (rising.pooled.value, rising.within.value, rising.monotone) == (1, 1, 0)
    study = degrade_study(crops(4), lambda call: np.full(len(call), 0.5), ("dark",), draws=20)
    assert math.isnan(study.curves[0].pooled.value)
    assert math.isnan(study.curves[0].within.low)
    assert study.curves[0].undefined == 4
    assert table(study)[1][:4] == ["dark", "undefined", "undefined", "0 %"]


def test_one_image_has_no_interval() -> None:
    study = degrade_study(crops(1), Recorder(lambda image: float(image.mean())), ("dark",))
    assert study.curves[0].pooled.value == -1
    assert math.isnan(study.curves[0].pooled.low)
    assert table(study)[1][1] == "-1.000"


def test_an_image_with_a_score_that_is_not_finite_is_left_out() -> None:
    images = crops(3)
    images[1][:] = 200
    left_out: list[int] = []
    scorer = Recorder(lambda image: math.nan if image.min() == 200 else float(image.mean()))
    study = degrade_study(images, scorer, ("dark",), draws=2, on_unscored=left_out.append)
    assert len(study.scores) == 2
    assert study.unscored == 1
    assert left_out == [1]
    with pytest.raises(InputError, match="at least one image that can be scored, got none"):
        degrade_study(images[1:2], scorer, ("dark",))


def test_what_the_function_refuses() -> None:
    scorer = Recorder(lambda image: 0.0)
    with pytest.raises(ValueError, match="got 'fog'"):
        degrade_study(crops(1), scorer, ("fog",))
    with pytest.raises(ValueError, match="got none"):
        degrade_study(crops(1), scorer, ())
    with pytest.raises(ValueError, match=r"wanted 6 scores, got an array \[2\]"):
        degrade_study(crops(1), lambda call: [0, 0], ("dark",))
    with pytest.raises(InputError, match="got none"):
        degrade_study([], scorer)


def test_images_are_taken_one_at_a_time() -> None:
    asked = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal asked
        for image in crops(5):
            asked += 1
            yield image

    def score(call: list[np.ndarray]) -> list[float]:
        scored.append(asked)
        return [float(image.mean()) for image in call]

    scored: list[int] = []
    degrade_study(stream(), score, ("dark",), draws=2)
    assert scored == [1, 2, 3, 4, 5]


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command alone; an error of the user's becomes status 2 and its one line."""

    def invoke(*args: object) -> tuple[int, str, str]:
        try:
            status = evaluate_degrade.command.main([*map(str, args)], standalone_mode=False)
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            assert capfd.readouterr() == ("", "")
            return 2, "", message
        out, err = capfd.readouterr()
        return int(status or 0), out, err

    return invoke


def test_the_command_knows_the_types() -> None:
    assert evaluate_degrade.TYPES == TYPES


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fiqa_fast.cli.evaluate_degrade import command\n"
        "try: command.main(['--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Examples:" in done.stdout


@needs_matplotlib
def test_the_built_in_model_prefers_the_undamaged(
    run: Run, source_tree: Path, tmp_path: Path
) -> None:
    folder = source_tree / "examples" / "crops"
    output, plot = tmp_path / "report.json", tmp_path / "plot.png"
    options = ["--dtype", "float32", "--device", "cpu"]
    status, out, err = run(folder, "-o", output, "--plot", plot, *options)
    assert status == 0
    report = json.loads(output.read_text())
    assert report["images"] == 9
    assert report["scorer"]["method"] == "attn-fiqa"
    assert list(report["types"]) == list(TYPES)
    for kind, entry in report["types"].items():
        assert entry["spearman_pooled"]["value"] < 0
        assert entry["spearman_within_image"]["value"] < 0
        assert [level["level"] for level in entry["levels"]] == list(LEVELS)
        (line,) = [line for line in out.splitlines() if line.startswith(f"{kind} ")]
        assert f"{entry['spearman_pooled']['value']:+.3f} [" in line
        # All types start from the same clean images.
        assert entry["levels"][0] == report["types"]["gblur"]["levels"][0]
    assert "9 of 9 images studied" in err
    scorer = Scorer(load_model("starter"), dtype="float32", device="cpu")
    clean = scorer(sorted(folder.iterdir())).score
    assert clean is not None
    mean = report["types"]["occl"]["levels"][0]["mean_score"]["value"]
    assert mean == pytest.approx(clean.double().mean().item(), abs=1e-6)
    with Image.open(plot) as image:
        assert np.asarray(image.convert("L")).std() > 10
    # The same study gives the same numbers.
    run(folder, "-o", tmp_path / "again.json", *options, "--quiet")
    assert json.loads((tmp_path / "again.json").read_text())["types"] == report["types"]


def test_csv_and_markdown_say_the_same(run: Run, gallery: Path, tmp_path: Path) -> None:
    args = [gallery, "--types", "dark,occl", "--limit", 3, "--quiet"]
    for name in ("r.json", "r.csv", "r.md"):
        status, out, err = run(*args, "-o", tmp_path / name)
        assert (status, err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["type"], row["level"]) for row in rows] == [
        (kind, str(level)) for kind in ("dark", "occl") for level in LEVELS
    ]
    markdown = (tmp_path / "r.md").read_text()
    for row in rows:
        entry = report["types"][row["type"]]
        level = entry["levels"][int(row["level"])]
        assert float(row["mean_score"]) == level["mean_score"]["value"]
        assert float(row["quartile_3"]) == level["quartiles"][1]
        assert float(row["spearman_pooled"]) == entry["spearman_pooled"]["value"]
        assert float(row["spearman_within_image_low"]) == entry["spearman_within_image"]["low"]
        assert row["images"] == "3"
        assert f"| {row['type']} | {entry['spearman_pooled']['value']:+.3f} [" in markdown


@needs_matplotlib
@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_plots_are_reproducible(run: Run, gallery: Path, tmp_path: Path, suffix: str) -> None:
    plots = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for plot in plots:
        run(gallery, "--types", "dark", "--limit", 2, "--plot", plot)
    assert plots[0].read_bytes() == plots[1].read_bytes()


def test_a_broken_image_is_named_and_counted(run: Run, gallery: Path) -> None:
    (gallery / "3.png").write_bytes(b"not an image")
    args = [gallery, "--types", "dark"]
    status, out, err = run(*args)
    assert status == 0
    assert "3.png: wanted a JPEG, PNG" in err
    assert "6 of 7 images studied" in err
    assert "1 left out; the reasons stand above" in err
    assert "6 images" in out
    assert run(*args, "--strict", "--quiet")[0] == STRICT


def test_constant_scores_are_undefined_not_fatal(
    run: Run, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Scorer,
        "__call__",
        lambda self, images: QualityResult(score=torch.full((len(images),), 2.0)),
    )
    args = [gallery, "--types", "noise", "-o", tmp_path / "r.json"]
    if importlib.util.find_spec("matplotlib") is not None:
        args += ["--plot", tmp_path / "r.svg"]
    status, out, _ = run(*args)
    assert status == 0
    assert out.count("undefined") == 2
    entry = json.loads((tmp_path / "r.json").read_text())["types"]["noise"]
    assert entry["spearman_pooled"] == {"value": None, "low": None, "high": None}
    assert entry["images_of_equal_scores"] == 7


def test_a_limit_is_spread_over_the_input(run: Run, tmp_path: Path) -> None:
    for i in range(6):
        face(tmp_path / "in" / f"{i}.png", i)
    for i in (0, 2, 4):
        face(tmp_path / "half" / f"{i}.png", i)
    means = []
    for args in ([tmp_path / "in", "--limit", 3], [tmp_path / "half", "--limit", 9]):
        run(*args, "--types", "dark", "-o", tmp_path / "r.json")
        means.append(json.loads((tmp_path / "r.json").read_text())["types"])
    assert means[0] == means[1]


def test_outputs_in_the_input_folder_are_not_studied(run: Run, gallery: Path) -> None:
    args = [gallery, "--types", "dark", "-o", gallery / "r.csv"]
    if importlib.util.find_spec("matplotlib") is not None:
        args += ["--plot", gallery / "plot.png"]
    for _ in range(2):
        status, _, err = run(*args)
        assert status == 0
        assert "7 of 7 images studied" in err


def test_refusals_are_one_line(run: Run, gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"x")
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "empty"], "no image found in"),
        ([tmp_path / "missing"], "no such file"),
        ([gallery, "--types", "fog"], "wanted some of gblur"),
        ([gallery, "--types", ","], "got none"),
        ([gallery, "-o", tmp_path / "r.txt"], "wanted a name ending in .json, .csv, .md"),
        ([gallery, "-o", tmp_path / "no" / "r.csv"], "does not exist; create it first"),
        ([gallery, "--plot", tmp_path / "p.jpg"], "wanted a name ending in .png"),
        ([gallery, "--limit", 0], "0 is not in the range"),
        ([gallery, "--exit", 99], "exit must be a block's number"),
    ]
    for args, message in cases:
        status, out, err = run(*args)
        assert (status, out) == (2, "")
        assert message in err
        assert "\n" not in err
    with pytest.raises(InputError, match="at least one image that can be scored, got none"):
        evaluate_degrade.command.main([str(tmp_path / "broken")], standalone_mode=False)


def test_without_matplotlib_a_plot_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'fiqa_fast\[evaluate\]'"):
        check_figure(str(tmp_path / "plot.png"))
