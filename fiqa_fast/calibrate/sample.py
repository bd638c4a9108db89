# SPDX-License-Identifier: Apache-2.0
"""A bounded sample of held-back rows, for rank correlations, which moments cannot give."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

SAMPLE_ROWS = 1000


@dataclasses.dataclass
class RowSample:
    """The rows of the smallest lots: a fair draw that does not depend on the rows' order."""

    lots: Tensor  # int64 [K]
    rows: Tensor  # float32 [K, L, V], the target last

    @classmethod
    def empty(cls, L: int, V: int) -> RowSample:
        lots = torch.zeros(0, dtype=torch.int64, device="cpu")
        return cls(lots, torch.zeros(0, L, V, dtype=torch.float32, device="cpu"))

    def add(self, lots: Tensor, rows: Tensor) -> None:  # [R], [R, L, V]
        if len(self.lots) == SAMPLE_ROWS:  # most rows are out from the start
            near = lots < self.lots[-1]
            lots, rows = lots[near], rows[near]
        if len(lots) == 0:
            return
        lots = torch.cat([self.lots, lots])
        rows = torch.cat([self.rows, rows.float()])
        chosen = lots.argsort(stable=True)[:SAMPLE_ROWS]
        self.lots, self.rows = lots[chosen], rows[chosen]
