# SPDX-License-Identifier: Apache-2.0
"""Is the score right? Error-versus-discard curves (EDC, also ERC) of any quality score.

    from fiqa_fast import evaluate

    trials = evaluate.Trials.of_identities(embeddings, identity)    # all pairs
    found = evaluate.compare(trials, {"mine": scores}, protocols=["crfiqa"], fmr=[1e-3])
    found.rows[0].pauc_ratio

Data flows one way: readers -> trials -> a protocol's outcome -> curve -> areas -> report.
"""

from .compare import PROTOCOLS, Comparison, Interval, Row, compare
from .curves import Curve
from .trials import Trials

__all__ = ["PROTOCOLS", "Comparison", "Curve", "Interval", "Row", "Trials", "compare"]
