# SPDX-License-Identifier: Apache-2.0
"""Scoring on a Ray cluster: actors hold the model, Ray Data moves the images.

What an actor computes is what a :class:`fiqa_fast.Scorer` computes, bit for bit, so a table does
not tell which machine scored which row, nor whether one of them died on the way.
"""

from fiqa_fast.ray.dataset import score_dataset

__all__ = ["score_dataset"]
