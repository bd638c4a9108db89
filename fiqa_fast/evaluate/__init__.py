# SPDX-License-Identifier: Apache-2.0
"""Is the score right? Error-versus-discard curves (EDC, also ERC) of any quality score.

    from fiqa_fast import evaluate

    dataset = evaluate.open_dataset("faces/")                      # one subfolder per identity
    scores = evaluate.read_scores("scores.parquet", dataset.paths)
    embeddings = evaluate.read_embeddings("emb.npz", dataset.paths)
    found = evaluate.compare(dataset.trials(embeddings), scores, protocols=["crfiqa"], fmr=[1e-3])
    found.rows[0].pauc_ratio

or, without files, ``evaluate.Trials.of_identities(embeddings, identity)`` and ``of_pairs``. Data
flows one way: readers -> trials -> a protocol's curve -> areas -> report.
"""

from .compare import PROTOCOLS, Comparison, Interval, Row, compare
from .protocols.curves import Curve
from .readers.datasets import Dataset, open_dataset
from .readers.embeddings import read_embeddings
from .readers.matchers import embed_images, open_matcher
from .readers.scores import read_scores
from .trials import Trials

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "Curve",
    "Dataset",
    "Interval",
    "Row",
    "Trials",
    "compare",
    "embed_images",
    "open_dataset",
    "open_matcher",
    "read_embeddings",
    "read_scores",
]
