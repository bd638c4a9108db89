# SPDX-License-Identifier: Apache-2.0
"""Fitting a gauge: one ridge regression per block, on unlabelled crops.

``crops`` draws the degraded copies, ``subject`` runs the model on them, ``moments`` and ``sample``
keep what is needed of each image, ``ridge`` solves, ``fitting`` ties these together; ``state`` lets
a long fit go on where it stopped. Nothing of this is in any paper: the gauge is fiqa_fast's own.
"""

from .api import fit_gauge

__all__ = ["fit_gauge"]
