# SPDX-License-Identifier: Apache-2.0
"""Face image quality from Vision Transformers, at the lowest cost the mathematics allows.

    import fiqa_fast

    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    print(scorer(["crop.jpg"]).score)

Names are loaded on first use, so that the command line can answer before torch is imported.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import evaluate, ops, ray, reference
    from .calibrate import fit_gauge
    from .dropin import last_quality, register_attention, replace_last_attention, with_quality
    from .errors import CheckpointError, ImageError, UnsupportedModelError
    from .models import FaceViT, Gauge, ViTConfig, load_gauge, load_model, save_gauge
    from .scorer import QualityResult, Scorer

__version__ = version("fiqa_fast")

__all__ = [
    "CheckpointError",
    "FaceViT",
    "Gauge",
    "ImageError",
    "QualityResult",
    "Scorer",
    "UnsupportedModelError",
    "ViTConfig",
    "evaluate",
    "fit_gauge",
    "last_quality",
    "load_gauge",
    "load_model",
    "ops",
    "ray",
    "reference",
    "register_attention",
    "replace_last_attention",
    "save_gauge",
    "with_quality",
]

_HOMES = {
    "calibrate": ("fit_gauge",),
    "dropin": ("last_quality", "register_attention", "replace_last_attention", "with_quality"),
    "errors": ("CheckpointError", "ImageError", "UnsupportedModelError"),
    "models": ("FaceViT", "Gauge", "ViTConfig", "load_gauge", "load_model", "save_gauge"),
    "scorer": ("QualityResult", "Scorer"),
}


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "ops", "ray", "reference"):
        return importlib.import_module(f"{__name__}.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
