# SPDX-License-Identifier: Apache-2.0
"""The face ViT, its registered architectures, checkpoints and gauges."""

from .config import ViTConfig
from .gauge import Gauge, load_gauge, save_gauge, state_dict_sha256
from .loading import load_model
from .vit import FaceViT

__all__ = [
    "FaceViT",
    "Gauge",
    "ViTConfig",
    "load_gauge",
    "load_model",
    "save_gauge",
    "state_dict_sha256",
]
