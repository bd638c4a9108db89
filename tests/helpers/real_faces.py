# SPDX-License-Identifier: Apache-2.0
"""The cross-quality set of the test data that is not shipped: trials, and its control's scores."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fiqa_fast import evaluate


def cross_quality(data: Path) -> tuple[evaluate.Trials, list[str], list[float]]:
    """All pairs by the stored matcher, the images' paths, and LightQNet's scores of them."""
    faces = data / "faces"
    with open(faces / "crossq_protocol.csv", newline="") as file:
        table = list(csv.DictReader(file))
    stored = np.load(faces / "reference_edgeface_xs_embeddings.npz")
    place = {path: i for i, path in enumerate(stored["paths"])}
    embeddings = stored["emb"][[place[row["path"]] for row in table]]
    trials = evaluate.Trials.of_identities(embeddings, [row["identity"] for row in table])
    return trials, [row["path"] for row in table], [float(row["lightqnet100"]) for row in table]
