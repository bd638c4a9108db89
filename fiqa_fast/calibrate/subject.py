# SPDX-License-Identifier: Apache-2.0
"""The model that a gauge is fitted on, as one pass from pixels to what the fit needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..engine import make_engine
from ..hardware import resolve_device, resolve_dtype
from ..models.gauge import state_dict_sha256
from ..models.vit import FaceViT
from ..quality.pooled import PooledAttention
from ..workers import run_alone


class Observation(NamedTuple):
    """On the CPU, float32."""

    mean_logits: Tensor  # [B, L], published, over the patches
    phi: Tensor  # [B, L, D], (s / H) [q_mean_1 ... q_mean_H]
    embedding: Tensor  # [B, E]


class Subject(Protocol):
    """A model ready to be observed. Equal batches give equal bits."""

    size: int  # of the images, pixels
    depth: int
    width: int  # D, all heads' queries side by side
    model_sha256: str
    hash: str  # "file" or "state_dict"
    architecture: Mapping[str, Any]  # what the weights do not show
    describe: dict[str, str]  # what else decides the values

    def observe(self, pixels: Tensor) -> Observation:  # uint8 RGB [B, 3, S, S]
        ...


class FaceViTSubject:
    """A :class:`FaceViT` in the engine that scores with it; its own embedding is the target's."""

    def __init__(
        self, model: FaceViT, device: str | torch.device, dtype: str | torch.dtype
    ) -> None:
        config = model.config
        self.size, self.depth, self.width = config.img_size, config.depth, config.embed_dim
        state = run_alone(lambda: state_dict_sha256(model))
        # The file's digest names the model only while it is what the file says.
        as_the_file_says = (
            model.checkpoint_sha256 is not None
            and model.checkpoint_state_sha256 == state
            and model.checkpoint_config == config
        )
        self.architecture: Mapping[str, Any] = dataclasses.asdict(config)
        self.hash = "file" if as_the_file_says else "state_dict"
        self.model_sha256 = (as_the_file_says and model.checkpoint_sha256) or state
        place = resolve_device(device)
        kind = resolve_dtype(dtype, place)
        self.describe = {
            "embedding": "the model's own",
            "device": place.type,
            "dtype": str(kind).removeprefix("torch."),
        }
        self._engine = run_alone(
            lambda: make_engine(
                "auto",
                model,
                PooledAttention(model, place),
                embedding=True,
                device=place,
                dtype=kind,
            )
        )

    def observe(self, pixels: Tensor) -> Observation:
        values = self._engine.run(pixels)
        return Observation(values["mean_logits"], values["phi"], values["embedding"])
