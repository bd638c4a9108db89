# SPDX-License-Identifier: Apache-2.0
"""The scores and trials that ``evidence.py`` writes about."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import fiqa_fast
from fiqa_fast import evaluate
from fiqa_fast.evaluate.compare import Row
from fiqa_fast.evaluate.readers.datasets import Dataset, open_dataset
from fiqa_fast.evaluate.readers.embeddings import read_embeddings
from fiqa_fast.evaluate.studies.reproduce import Settings, scores_of_all_methods
from fiqa_fast.gallery.progress import SilentProgress
from fiqa_fast.images import load_image

Array = npt.NDArray[np.float64]
FMR, LIMIT = 1e-3, 0.3
OURS, THEIRS, VARIANCE = "calibrated mean", "ATTN-FIQA mean", "ATTN-FIQA centered_variance"
FITTED, REVERSED = "fitted", "reversed mean"
CONTROLS = ("LightQNet-100", "random")


@dataclasses.dataclass
class Faces:
    """The cross-quality set, its controls, and every method's scores."""

    dataset: Dataset
    scores: dict[str, Array]
    matchers: dict[str, npt.NDArray[np.float32]]
    names: list[str]  # whom each image shows; sorted, they tell the first half from the second


def open_faces(data: Path) -> tuple[Dataset, npt.NDArray[np.float32], list[str]]:
    """The set, its matcher's embeddings, and whom each image shows."""
    faces = data / "faces"
    dataset = open_dataset(
        faces / "crossq_protocol.csv", root=faces / "aligned112", columns=["lightqnet100"]
    )
    embeddings = read_embeddings(faces / "reference_edgeface_xs_embeddings.npz", dataset.paths)
    return dataset, embeddings, [Path(path).parts[1] for path in dataset.paths]


def read_faces(data: Path, values: Path) -> Faces:
    dataset, embeddings, names = open_faces(data)
    images = data / "faces" / "aligned112"
    assert dataset.items is not None
    model = fiqa_fast.load_model("starter")
    settings = Settings(every_block=True)
    scores = scores_of_all_methods(
        model, dataset.items, values, settings, lambda left: SilentProgress()
    )
    for block in range(1, model.config.depth + 1):
        scores[f"{REVERSED}, block {block}"] = -scores[f"{THEIRS}, block {block}"]
    scores[CONTROLS[0]] = dataset.scores["lightqnet100"]
    scores[CONTROLS[1]] = np.random.default_rng(0).random(len(dataset.paths))
    own = fiqa_fast.Scorer(model, outputs=("embedding",), dtype="float32")
    stacked = [own([images / path for path in dataset.paths]).embedding]
    matchers = {"EdgeFace-XS": embeddings, "the built-in model itself": torch.cat(stacked).numpy()}
    return Faces(dataset, scores, matchers, names)


def ratios(trials: evaluate.Trials, scores: dict[str, Array]) -> dict[str, Row]:
    found = evaluate.compare(trials, scores, fmr=[FMR], limit=LIMIT)
    return {row.method: row for row in found.rows}


def calibrated_by_exit(data: Path) -> dict[int, Row]:
    """The calibrated score of every block, in float32, by block."""
    dataset, embeddings, names = open_faces(data)
    scorer = fiqa_fast.Scorer(
        fiqa_fast.load_model("starter"), outputs=("exit_scores",), dtype="float32"
    )
    paths = [data / "faces" / "aligned112" / path for path in dataset.paths]
    values = torch.cat([scorer(paths[i : i + 64]).exit_scores for i in range(0, len(paths), 64)])
    by_block = {str(b): v.double().numpy() for b, v in enumerate(values.unbind(1), 1)}
    found = ratios(evaluate.Trials.of_identities(embeddings, names), by_block)
    return {int(block): row for block, row in found.items()}


@dataclasses.dataclass
class Halves:
    """A gauge fitted on one half of the identities, tried on the other."""

    found: dict[str, Row]
    trials: evaluate.Trials
    crops: int  # it was fitted on
    identities: tuple[int, int]
    same_embeddings: bool


def fitted_on_half(faces: Faces, data: Path, depth: int) -> Halves:
    """The first half of the identities by name gives the gauge, the second the figures."""
    people = sorted(set(faces.names))
    first = set(people[: len(people) // 2])
    folder = data / "faces" / "aligned112"
    crops = [path for name in sorted(first) for path in sorted((folder / "lfw" / name).iterdir())]
    model = fiqa_fast.load_model("starter")
    gauge = fiqa_fast.fit_gauge(model, crops)
    others = np.array([i for i, name in enumerate(faces.names) if name not in first])
    images = [folder / faces.dataset.paths[i] for i in others]
    outputs = ("exit_scores", "embedding")
    fitted, plain = (
        fiqa_fast.Scorer(model, gauge=each, outputs=outputs, dtype="float32")(images)
        for each in (gauge, None)
    )
    scores = {
        f"{label}, block {b}": faces.scores[f"{label}, block {b}"][others]
        for label in (THEIRS, VARIANCE, OURS)
        for b in range(1, depth + 1)
    }
    for b in range(1, depth + 1):
        scores[f"{FITTED}, block {b}"] = fitted.exit_scores[:, b - 1].double().numpy()
    scores.update({control: faces.scores[control][others] for control in CONTROLS})
    embeddings = faces.matchers["EdgeFace-XS"][others]
    trials = evaluate.Trials.of_identities(embeddings, [faces.names[i] for i in others])
    same = torch.equal(fitted.embedding, plain.embedding)
    sizes = (len(first), len(people) - len(first))
    return Halves(ratios(trials, scores), trials, len(crops), sizes, same)


def speeds(faces: Faces, data: Path, depth: int, turns: int) -> dict[int, float]:
    """Images per second of each exit, score only, bfloat16 where the processor has it: medians of
    turns in which every exit has its go."""
    model = fiqa_fast.load_model("starter")
    paths = [data / "faces" / "aligned112" / path for path in faces.dataset.paths[:128]]
    batch = torch.stack([load_image(path, model.config.img_size) for path in paths])
    scorers = {exit: fiqa_fast.Scorer(model, exit=exit) for exit in range(1, depth + 1)}
    seconds: dict[int, list[float]] = {exit: [] for exit in scorers}
    for turn in range(turns + 1):
        for exit, scorer in scorers.items():
            start = time.perf_counter()
            scorer(batch)
            if turn:  # the first warms up
                seconds[exit].append(time.perf_counter() - start)
    return {exit: len(batch) / float(np.median(taken)) for exit, taken in seconds.items()}
