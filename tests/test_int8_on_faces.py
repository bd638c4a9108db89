# SPDX-License-Identifier: Apache-2.0
"""int8 on real faces: how it ranks them beside float32, and what a matcher makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from real_faces import cross_quality
from scipy.stats import spearmanr

from fiqa_fast import Scorer, evaluate, load_model


@pytest.mark.parametrize("gauge", [None, "auto"], ids=["published", "calibrated"])
def test_int8_ranks_faces_as_float32_does(needs_data: Path, gauge: str | None) -> None:
    trials, paths, _ = cross_quality(needs_data)
    images = [needs_data / "faces" / "aligned112" / path for path in paths]
    model = load_model("starter")
    scores = {}
    for dtype in ("float32", "int8"):
        scorer = Scorer(model, gauge=gauge, outputs=("exit_scores",), dtype=dtype, device="cpu")
        found = [scorer(images[i : i + 64]).exit_scores for i in range(0, len(images), 64)]
        scores[dtype] = torch.cat([part for part in found if part is not None]).double().numpy()
    ranks = [
        spearmanr(exact, low).statistic
        for exact, low in zip(scores["float32"].T, scores["int8"].T, strict=True)
    ]
    assert ranks[-1] > 0.999
    assert min(ranks) > 0.997  # weights have seven bits where the processor is older
    last = {dtype: np.asarray(values[:, -1]) for dtype, values in scores.items()}
    exact, low = evaluate.compare(trials, last, fmr=[1e-3]).rows
    interval = exact.pauc_ratio_interval
    assert interval is not None
    assert interval.low < low.pauc_ratio < interval.high
