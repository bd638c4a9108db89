# SPDX-License-Identifier: Apache-2.0
"""Patch maps as pictures: where in a crop the quality comes from.

    gallery -> maps (kept small, on disk) -> limits of the colours -> crops again -> pictures

Two passes, because one colour scale for all pictures is known only when the last map is. The maps
of the first pass are a few hundred bytes per image; the crops, a hundred times that, are read
again where they are drawn.
"""

from fiqa_fast.heatmap.colours import Colours, colormap, find_limits
from fiqa_fast.heatmap.grid import PatchGrid
from fiqa_fast.heatmap.maps import MapTable
from fiqa_fast.heatmap.overlay import Painter

__all__ = ["Colours", "MapTable", "Painter", "PatchGrid", "colormap", "find_limits"]
