# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate reproduce``: every score is the Scorer's own, and a run can go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import COMMAND, face, one_line_error
from evaluation_sets import EMBEDDINGS, LAYOUTS, Faces, make_faces, write_csv

from fiqa_fast import FaceViT, Gauge, Scorer, load_model
from fiqa_fast.evaluate import compare
from fiqa_fast.evaluate.readers.datasets import open_dataset
from fiqa_fast.evaluate.readers.scores import read_scores
from fiqa_fast.evaluate.studies import reproduce, stored
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.progress import SilentProgress
from fiqa_fast.images import load_image
from fiqa_fast.models.gauge import save_gauge

PARITY = Path(__file__).parent / "data" / "parity"
ABLATIONS = ("median", "max", "inverse_std")
VARIANCES = ("row_variance", "centered_variance")
ATTENTION, TOKEN = "cvlface_patch8", "vitfiqa_token"

pytestmark = pytest.mark.usefixtures("_matplotlib")


@pytest.fixture(scope="module")
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@dataclass
class Study:
    """The papers' layout with images, and how `reproduce` is told of it."""

    faces: Faces
    data: Path
    folder: Path

    @property
    def images(self) -> list[Path]:
        return [self.data / "images" / path for path in self.faces.paths]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def embeddings(self) -> Path:
        return self.folder / "e.npz"

    def args(self, checkpoint: str = ATTENTION, *more: object) -> tuple[object, ...]:
        return (
            "evaluate", "reproduce", self.data, "--model", PARITY / f"{checkpoint}.pt",
            "--architecture", "num_heads=2", "--embeddings", self.embeddings,
            "-o", self.output, "--fmr", "0.05,0.2", *more,
        )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    faces = make_faces(4, 3)
    data = LAYOUTS["reference"](faces, tmp_path)
    for i, path in enumerate(faces.paths):
        face(data / "images" / path, i, 112)
    EMBEDDINGS["npz"](faces, tmp_path)
    return Study(faces, data, tmp_path)


def model(checkpoint: str) -> FaceViT:
    return load_model(PARITY / f"{checkpoint}.pt", {"num_heads": 2})


def written(study: Study) -> dict[str, np.ndarray]:
    """Every method's scores as other systems read them, by file name."""
    scores = {}
    for path in sorted((study.output / "scores").iterdir()):
        scores.update(read_scores(path, study.faces.paths, missing="worst"))
    return scores


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def own_scores(vit: FaceViT, gauge: Gauge | None, every_block: bool) -> dict[str, dict[str, Any]]:
    """Name of a method's file -> options of the Scorer whose score it is."""
    depth, heads = vit.config.depth, vit.config.num_heads
    options: dict[str, dict[str, Any]] = {}
    if vit.config.quality_head is not None:
        head = {"method": "ex-fiqa"}
        options |= {f"EX-FIQA_exit_{e}": head | {"exit": e} for e in range(1, depth)}
        options[f"ViT-FIQA_exit_{depth}"] = {"method": "vit-fiqa"}
        options["EX-FIQA-F_uniform_fusion"] = head | {"fusion": "uniform"}
        options["EX-FIQA-FW_depth_fusion"] = head | {"fusion": "depth"}
    for label, own in (("ATTN-FIQA_mean", None), ("calibrated_mean", gauge)):
        if own is gauge and gauge is None and label == "calibrated_mean":
            continue
        for exit in range(1, depth + 1):
            options[f"{label}_block_{exit}"] = {"gauge": own, "exit": exit}
        for fusion in ("uniform", "depth"):
            options[f"{label}_{fusion}_fusion"] = {"gauge": own, "fusion": fusion}
    for head in range(heads):
        options[f"ATTN-FIQA_mean_head_{head}"] = {"heads": head, "gauge": None}
    for exit in range(1 if every_block else depth, depth + 1):
        for reduction in (*ABLATIONS, *VARIANCES):
            one = {"reduction": reduction, "exit": exit, "gauge": None}
            options[f"ATTN-FIQA_{reduction}_block_{exit}"] = one
            if reduction in ABLATIONS:
                name = f"ATTN-FIQA_{reduction}_of_averaged_heads_block_{exit}"
                options[name] = one | {"heads": "average"}
    return options


@pytest.mark.parametrize(("checkpoint", "every_block"), [(ATTENTION, True), (TOKEN, False)])
def test_every_score_is_the_scorers_own(
    cli: Any, study: Study, checkpoint: str, every_block: bool
) -> None:
    vit = model(checkpoint)
    more: tuple[object, ...] = ("--every-block",) if every_block else ()
    gauge = None
    if checkpoint == ATTENTION:
        config = vit.config
        gauge = Gauge(
            torch.linspace(-1, 1, config.depth),
            torch.randn(config.depth, config.embed_dim),
            torch.randn(config.depth),
            vit.checkpoint_sha256,
        )
        save_gauge(gauge, study.folder / "mine.safetensors")
        more += ("--gauge", study.folder / "mine.safetensors")
    outcome = cli(*study.args(checkpoint, *more, "--quiet"))
    assert outcome.status == 0, outcome.err
    found = written(study)
    expected = own_scores(vit, gauge, every_block)
    assert set(found) == set(expected)
    pixels = torch.stack([load_image(path, 112) for path in study.images])
    for name, options in expected.items():
        score = Scorer(vit, dtype="float32", device="cpu", **options)(pixels).score
        assert score is not None
        want = score.double().numpy()
        # Fusions are summed in another order, exits of a token computed for one token alone.
        assert np.abs(found[name] - want).max() <= 2e-6 * np.abs(want).max(), name
        if "fusion" not in name and "FIQA_exit" not in name:
            assert np.array_equal(found[name], want), name


def test_the_table_has_every_score_and_the_area_times_a_thousand(cli: Any, study: Study) -> None:
    outcome = cli(*study.args(TOKEN))
    assert outcome.status == 0, outcome.err
    document = json.loads((study.output / "e.json").read_text())
    areas: dict[str, list[str]] = {}
    for row in document["rows"]:
        assert row["protocol"] == "crfiqa"
        areas.setdefault(row["method"], []).append(f"{1e3 * row['pauc']:.2f}")
    assert len(areas) == len(own_scores(model(TOKEN), None, False))
    page = (study.output / "table.md").read_text()
    assert page.startswith("# tiny\n\n## e\n\nProtocol crfiqa; 12 images, 12 genuine and 54 ")
    assert "| score | FMR 0.05 | FMR 0.2 |" in page
    for method, cells in areas.items():
        assert f"| {method} | {' | '.join(cells)} |\n" in page
        line = next(x for x in outcome.out.splitlines() if x.startswith(f"{method}  "))
        assert line.removeprefix(method).split() == cells
    assert "EX-FIQA-FW(T) 6.36" in page
    assert "e: crfiqa, pAUC to 0.3, x 1e3" in outcome.out
    # And the area is that of the scores written beside it.
    dataset = open_dataset(study.data)
    trials = dataset.trials(study.faces.embeddings)
    scores = written(study)
    again = compare(trials, scores, protocols=["crfiqa"], fmr=[0.05, 0.2], draws=0)
    assert sorted(row.pauc for row in again.rows) == sorted(row["pauc"] for row in document["rows"])


def interrupt_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Lets the scorer fail after so many calls; the answer tells how many there were."""
    call, count = Scorer.__call__, 0

    def failing(self: Scorer, images: torch.Tensor) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise RuntimeError("out of luck")
        return call(self, images)

    monkeypatch.setattr(Scorer, "__call__", failing)
    return lambda: count


def test_an_interrupted_run_goes_on(
    cli: Any, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PART", 5)  # three parts per pass
    assert cli(*study.args(), "--quiet").status == 0
    whole = everything(study.output)
    study.output.rename(study.folder / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(13, patch)  # a blank image and a batch for each part
        line = one_line_error(cli(*study.args(), "--quiet"))
        assert line == "the scorer failed: RuntimeError: out of luck"
    done = {name for name in everything(study.output) if name.endswith(".npy")}
    assert 0 < len(done) < 9 * 3
    with monkeypatch.context() as patch:
        calls = interrupt_after(1000, patch)
        outcome = cli(*study.args())
        assert outcome.status == 0, outcome.err
        assert calls() == 2 * (9 * 3 - len(done))
    assert "pass 3 of 9, attn-fiqa-median-averaged: 12 images to score" in outcome.err
    assert "pass 1 of 9" not in outcome.err
    assert everything(study.output) == whole


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_process_leaves_a_folder_to_go_on_with(cli: Any, study: Study) -> None:
    assert cli(*study.args(), "--quiet").status == 0
    whole = everything(study.output)
    study.output.rename(study.folder / "whole")
    process = subprocess.Popen([*COMMAND, *map(str, study.args())], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(study.output.glob("values/*/*.npy"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (study.output / "table.md").exists()
    assert cli(*study.args(), "--quiet").status == 0
    found = {k: v for k, v in everything(study.output).items() if not k.endswith(".tmp")}
    assert found == whole


def test_another_run_in_the_same_folder_is_refused(cli: Any, study: Study) -> None:
    assert cli(*study.args(), "--quiet").status == 0
    before = everything(study.output)
    listed = study.data / "image_path_list.txt"
    lines = listed.read_text().splitlines()
    for more in (("--dtype", "bfloat16"), ("--peer-bgr",)):
        line = one_line_error(cli(*study.args(ATTENTION, *more)))
        assert "holds values of other images or settings" in line
        assert "remove it, or write elsewhere with -o" in line
    other = one_line_error(cli(*study.args("vitfiqa_crfiqa")))
    assert "attn-fiqa-mean: holds values of other images or settings" in other
    listed.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    assert "holds values of other images" in one_line_error(cli(*study.args()))
    listed.write_text("\n".join(lines))
    now = everything(study.output)
    assert {name: now[name] for name in before} == before
    (study.output / "values" / "attn-fiqa-max" / "settings.json").unlink()
    assert "values without settings.json" in one_line_error(cli(*study.args()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-3],
        lambda content: b"",
        lambda content: b"PK\x03\x04" + content,
        lambda content: content[:200].replace(b"(12, 1)", b"(13, 1)") + content[200:] + bytes(4),
        lambda content: content.replace(b"<f4", b"<i4"),
    ],
)
def test_a_damaged_part_is_refused_by_name(cli: Any, study: Study, damage: Any) -> None:
    values = stored.StoredValues(study.folder / "values", 12, {})
    values.fill(lambda first, last: np.ones((last - first, 1), np.float32))
    part = study.folder / "values" / "000000000.npy"
    assert values.load().tolist() == [[1.0]] * 12
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(OutputError, match=r"000000000\.npy: .*; remove it and go on"):
        values.load()


def test_images_that_cannot_be_decoded_go_first_and_are_named(cli: Any, study: Study) -> None:
    broken = study.images[5]
    broken.write_bytes(b"no image")
    outcome = cli(*study.args(ATTENTION, "--draws", 5))
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("wanted a JPEG") == 1  # not once per pass
    said = "all scores: 1 of 12 images have no score and are discarded first"
    assert f"warning: {said}" in outcome.err
    assert study.faces.paths[5] in outcome.err
    assert said in (study.output / "table.md").read_text()
    for name, values in written(study).items():
        assert np.flatnonzero(np.isneginf(values)).tolist() == [5], name
    lines = (study.output / "scores" / "ATTN-FIQA_mean_block_1.txt").read_text().splitlines()
    assert lines[5].endswith(" nan")
    again = cli(*study.args(ATTENTION, "--draws", 5, "--quiet"))
    assert f"warning: {said}" in again.err
    assert again.out == outcome.out
    trials = open_dataset(study.data).trials(study.faces.embeddings)
    (row, *_) = json.loads((study.output / "e.json").read_text())["rows"]
    scores = np.where(np.arange(12) == 5, -np.inf, written(study)["ATTN-FIQA_mean_block_1"])
    want = compare(trials, {"q": scores}, protocols=["crfiqa"], fmr=[0.05], draws=0).rows[0]
    assert row["pauc"] == want.pauc


def test_peer_bgr_is_scoring_swapped_images(cli: Any, study: Study) -> None:
    from PIL import Image

    assert cli(*study.args(ATTENTION, "--peer-bgr", "--quiet")).status == 0
    swapped = written(study)
    study.output.rename(study.folder / "swapped")
    for path in study.images:
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image)[..., ::-1]).save(path, "PNG")
    assert cli(*study.args(ATTENTION, "--quiet")).status == 0
    for name, values in written(study).items():
        assert np.array_equal(values, swapped[name]), name


def test_a_second_matcher_later_scores_nothing_again(
    cli: Any, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*study.args(ATTENTION, "--quiet")).status == 0
    first = (study.output / "e.json").read_bytes()
    rng = np.random.default_rng(0)
    other = study.folder / "other matcher.npz"
    np.savez(other, paths=np.array(study.faces.paths), emb=rng.standard_normal((12, 4)))
    calls = interrupt_after(0, monkeypatch)
    outcome = cli(*study.args(ATTENTION, "--embeddings", f"the 2nd={other}"))
    assert outcome.status == 0, outcome.err
    assert calls() == 0
    assert "to score" not in outcome.err
    assert (study.output / "e.json").read_bytes() == first
    assert {"the_2nd.csv", "the_2nd.json", "the_2nd.svg", "table.md"} <= {
        path.name for path in study.output.iterdir()
    }
    page = (study.output / "table.md").read_text()
    assert page.index("## e\n") < page.index("## the 2nd\n")
    assert "the 2nd: crfiqa, pAUC" in outcome.out


def test_scores_of_other_methods_join_the_table(cli: Any, study: Study) -> None:
    lines = zip(study.faces.paths, study.faces.quality, strict=True)
    (study.folder / "other.txt").write_text("".join(f"{path} {q}\n" for path, q in lines))
    other = study.folder / "other.txt"
    outcome = cli(*study.args(ATTENTION, "--scores", f"CR-FIQA(L)={other}", "--quiet"))
    assert outcome.status == 0, outcome.err
    assert "| CR-FIQA(L) | " in (study.output / "table.md").read_text()
    assert len(list((study.output / "scores").iterdir())) == len(
        own_scores(model(ATTENTION), None, False)
    )
    name = "ATTN-FIQA mean, block 1"
    line = one_line_error(cli(*study.args(ATTENTION, "--scores", f"{name}={other}")))
    assert f"{name!r} is a score of this table already; call it NAME=FILE" in line


def test_embeddings_that_miss_images(cli: Any, study: Study) -> None:
    stored_embeddings = np.load(study.embeddings)
    keep = stored_embeddings["paths"] != study.faces.paths[2]
    np.savez(
        study.embeddings,
        paths=stored_embeddings["paths"][keep],
        emb=stored_embeddings["emb"][keep],
    )
    line = one_line_error(cli(*study.args()))
    assert "1 of 12 images have no embedding, " in line
    assert f"{study.faces.paths[2]}' for one" in line
    outcome = cli(*study.args(ATTENTION, "--missing", "worst", "--quiet"))
    assert outcome.status == 0, outcome.err
    assert f"warning: {study.embeddings}: 1 images without an embedding are left out" in outcome.err
    assert "11 images" in (study.output / "table.md").read_text()
    assert len(next(iter(written(study).values()))) == 12  # all are scored


def test_odd_paths(cli: Any, tmp_path: Path) -> None:
    names = ['a b/ü, "1".png', "a b/2 %s.png", "c\nd/3.png", "c\nd/4|5.png", "c\nd/-inf 6.png"]
    for i, name in enumerate(names):
        face(tmp_path / "in" / name, i, 112)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "e.npz", paths=np.array(names), emb=rng.standard_normal((5, 4)))
    outcome = cli(
        "evaluate", "reproduce", tmp_path / "in", "--model", PARITY / f"{ATTENTION}.pt",
        "--architecture", "num_heads=2", "--embeddings", f"a | b={tmp_path / 'e.npz'}",
        "-o", tmp_path / "out", "--fmr", "0.5", "--quiet",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "out" / "a_b.csv").exists()
    path = tmp_path / "out" / "scores" / "ATTN-FIQA_mean_block_4.txt"
    assert len(path.read_text().splitlines()) == 5
    (values,) = read_scores(path, names).values()
    score = Scorer(model(ATTENTION), dtype="float32")([tmp_path / "in" / n for n in names]).score
    assert score is not None
    assert np.array_equal(values, score.double().numpy())


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(*_: Any, **__: Any) -> None:
        raise AssertionError("DATA was read first")

    monkeypatch.setattr("fiqa_fast.evaluate.readers.datasets.open_dataset", reading)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--protocol", "all"), "crfiqa, dasec, fixed-fmr, got 'all'"),
        (("--fmr", "2"), "must lie between 0 and 1, got 2.0"),
        (("--limit", "0"), "limit must lie between 0.001 and 0.95, got 0.0"),
        (("--embeddings", "there/e.npz"), "two have one name; give them as NAME=PATH"),
        (("--embeddings", "x y=1", "--embeddings", "x_y=2"), "would both be called x_y"),
    ],
)
def test_options_are_refused_before_anything_is_read(
    cli: Any, study: Study, monkeypatch: pytest.MonkeyPatch, more: Any, words: str
) -> None:
    no_work(monkeypatch)
    assert words in one_line_error(cli(*study.args(ATTENTION, *more)))
    assert not study.output.exists()


def test_what_cannot_be_done_is_refused_before_a_score(
    cli: Any, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(0, monkeypatch)
    study.output.write_text("a file")
    assert "out: cannot make this folder: File exists" in one_line_error(cli(*study.args()))
    study.output.unlink()
    line = one_line_error(cli(*study.args(ATTENTION, "--device", "tpu")))
    assert "device" in line
    line = one_line_error(cli(*study.args(ATTENTION, "--gauge", "no.safetensors")))
    assert "no.safetensors" in line
    table = write_csv(
        study.folder / "t.csv",
        {"path": ["x/1.png", "x/2.png", "y/3.png"], "identity": ["x", "x", "y"]},
    )
    line = one_line_error(cli("evaluate", "reproduce", table, *study.args()[3:]))
    assert "wanted images to score, got paths without files; give --root" in line


def test_a_pass_that_cannot_be_is_refused_before_the_first(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = reproduce.passes_of(model(ATTENTION), None, False)
    bad = reproduce.Pass("bad", {"method": "attn-fiqa", "exit": 99}, ("score",), lambda v: {})
    monkeypatch.setattr(reproduce, "passes_of", lambda *_: [*passes, bad])
    items = open_dataset(study.data).items
    assert items is not None
    calls = interrupt_after(0, monkeypatch)
    with pytest.raises(ValueError, match="exit must be a block's number"):
        reproduce.scores_of_all_methods(
            model(ATTENTION),
            items,
            tmp_path / "values",
            reproduce.Settings(),
            lambda left: SilentProgress(),
        )
    assert calls() == 0


def test_progress_is_of_all_passes(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PART", 5)
    totals, counts, lines = [], [0], []

    class Counting(SilentProgress):
        def update(self, images: int) -> None:
            counts[0] += images

    def begin(left: int) -> Counting:
        totals.append(left)
        return Counting()

    items = open_dataset(study.data).items
    assert items is not None
    for _ in range(2):
        reproduce.scores_of_all_methods(
            model(ATTENTION),
            items,
            study.output,
            reproduce.Settings(),
            begin,
            lambda shown, line: lines.append(line),
        )
    assert totals == [9 * 12, 0]
    assert counts == [9 * 12]
    assert lines[0] == "pass 1 of 9, attn-fiqa-mean: 12 images to score"
    assert len(lines) == 9
