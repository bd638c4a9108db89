# SPDX-License-Identifier: Apache-2.0
"""What is raced: a score of a model, as ours, as published, and factorised in torch's operators."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..errors import CheckpointError
from ..hardware import resolve_device
from ..models.config import ViTConfig
from ..models.loading import Architecture, load_model
from ..models.registry import ARCHITECTURES
from ..models.vit import FaceViT
from ..scorer import Scorer
from .factorised import Factorised
from .published import Published

__all__ = ["Subject"]

_SEED = 0
_GRAPHS = {"published": Published, "factorised": Factorised}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A score of a model.

    Attributes:
        name: of the model: a checkpoint's path, "starter", or a registered architecture.
        architecture: as :func:`fiqa_fast.load_model` takes it.
        options: of :class:`fiqa_fast.Scorer`: method, reduction, heads, tokens, exit, fusion.
            There is no gauge: everyone computes the published score.
        device: where those engines run that can choose.
        threads: of every engine on a CPU.
        model: and whether its weights are ``random``.
    """

    name: str
    architecture: Architecture | None
    options: Mapping[str, Any]
    device: torch.device
    threads: int
    model: FaceViT
    random: bool

    @staticmethod
    def of(
        name: str,
        architecture: Architecture | None = None,
        options: Mapping[str, Any] | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> Subject:
        """Load the model, or make one of a registered architecture with random weights.

        A file of that name comes first. Raises :class:`CheckpointError`, and ValueError for the
        device.
        """
        place = resolve_device(device)
        random = name in ARCHITECTURES and name != "starter" and not os.path.exists(name)
        model = _random(name, architecture) if random else load_model(name, architecture)
        threads = threads or torch.get_num_threads()
        return Subject(name, architecture, options or {}, place, threads, model, random)

    def spec(self) -> dict[str, Any]:
        """The arguments of :meth:`of`, JSON-able."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "options": dict(self.options),
            "device": str(self.device),
            "threads": self.threads,
        }

    def describe(self) -> dict[str, Any]:
        """What it is, JSON-able."""
        facts = self.spec()
        exit = self.options.get("exit") or self.model.config.depth
        facts["options"] = {"method": "attn-fiqa", **self.options, "exit": exit}
        facts["architecture"] = dataclasses.asdict(self.model.config)
        return {**facts, "random_weights": self.random}

    def at_exit(self, exit: int) -> Subject:
        """The same score of another exit."""
        return dataclasses.replace(self, options={**self.options, "exit": exit})

    def scorer(self, dtype: str) -> Scorer:
        """Ours; ``high`` is float32 with split products. Raises what :class:`Scorer` raises."""
        arithmetic: dict[str, Any] = {"dtype": dtype}
        if dtype == "high":
            arithmetic = {"dtype": "float32", "float32_precision": "high"}
        return Scorer(self.model, device=self.device, gauge=None, **arithmetic, **self.options)

    def scorers(self, dtypes: Iterable[str]) -> dict[str, Scorer]:
        """Several of them."""
        return {dtype: self.scorer(dtype) for dtype in dtypes}

    def graph(self, name: str, dtype: torch.dtype) -> torch.nn.Module:
        """``published`` or ``factorised``: uint8 [B, 3, S, S] to (score [B], ..).

        Raises ValueError where the score does not factorise.
        """
        graph: torch.nn.Module = _GRAPHS[name](self.model, dtype, self.device, **self.options)
        return graph.eval()

    def exact(self, pixels: torch.Tensor) -> torch.Tensor:
        """The published scores in float32, [n], a few images at a time."""
        graph = self.graph("published", torch.float32)
        with torch.inference_mode():
            parts = [graph(part.to(self.device))[0].cpu() for part in pixels.split(8)]
        return torch.cat(parts)


def _random(name: str, architecture: Architecture | None) -> FaceViT:
    """Weights as a training begins with; positions and a quality token differ, as trained ones."""
    if isinstance(architecture, str):
        raise CheckpointError(
            f"{name} is an architecture already, with random weights; got {architecture}, too"
        )
    config: ViTConfig = ARCHITECTURES[name].config
    try:
        config = dataclasses.replace(config, **(architecture or {}))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = FaceViT(config)
        for part, value in model.named_parameters():
            if part in ("pos_embed", "qs_token"):
                torch.nn.init.normal_(value, std=0.02)
    return model.requires_grad_(False).eval()
