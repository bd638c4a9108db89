# SPDX-License-Identifier: Apache-2.0
"""A ViT that somebody else wrote, with hooks on every block's attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.site import AttentionSite, find_sites
from ..adapters.taps import Pass, Recorder, add_taps, pooled_taps
from ..dropin import plain_twin
from ..errors import UnsupportedModelError
from ..models.gauge import state_dict_sha256
from .subject import Observation

# Images per pass, of a group that is cut off alike in every run: another batch size might choose
# other kernels, and change last bits.
GROUP = 32
_SIZES = ("img_size", "image_size", "input_resolution")


class ForeignSubject:
    """Any ViT that :func:`fiqa_fast.with_quality` knows, where it is and in its own dtype.

    A twin of it runs: the model itself keeps its hooks, its mode and its class.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Callable[[Tensor], Any] | None = None,
        image_size: int | None = None,
        embedding: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self._twin = plain_twin(model).eval()
        sites = find_sites(self._twin)
        self._recorder = Recorder(on_demand=True)
        add_taps(self._twin, pooled_taps(sites, "patch", self._recorder))
        self.size = _image_size(model) if image_size is None else image_size
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"image_size must be a whole number of pixels, got {self.size!r}")
        parameter = next(model.parameters())
        self._like = parameter.detach()[:0]
        self._preprocess = self._normalised if preprocess is None else preprocess
        self._embedding = MeanPatchToken(self._twin, sites[-1])
        self._of_output = embedding
        self.depth = len(sites)
        self.architecture: Mapping[str, Any] = sites[-1].architecture
        self.model_sha256, self.hash = state_dict_sha256(model), "state_dict"
        self.describe = {
            "embedding": "mean patch token" if embedding is None else "of the model's output",
            "device": parameter.device.type,
            "dtype": str(parameter.dtype).removeprefix("torch."),
        }
        try:  # noise: a blank image would not tell one token from another
            generator = torch.Generator("cpu").manual_seed(0)
            shape = (2, 3, self.size, self.size)
            noise = torch.randint(
                0, 256, shape, generator=generator, dtype=torch.uint8, device="cpu"
            )
            first = self.observe(noise)
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise ValueError(
                f"wanted a model that takes images of {self.size} x {self.size}, as preprocess "
                f"makes them, it failed ({' '.join(str(error).split())[:160]}): say image_size= "
                "or preprocess="
            ) from error
        self.width = first.phi.shape[-1]

    def observe(self, pixels: Tensor) -> Observation:
        parts = [self._observe(part) for part in pixels.split(GROUP)]
        return Observation(*(torch.cat(values) for values in zip(*parts, strict=True)))

    @torch.no_grad()
    def _observe(self, pixels: Tensor) -> Observation:
        inputs = self._preprocess(pixels)
        current = self._recorder.current = Pass()
        try:
            output = self._twin(inputs)
        finally:
            self._recorder.current = None
        if len(current.pooled) != self.depth:
            raise UnsupportedModelError(
                f"wanted each of {self.depth} blocks to run once per forward pass, "
                f"{len(current.pooled)} did"
            )
        means, phis = zip(*current.pooled, strict=True)
        tokens = self._embedding.take()
        embedding = tokens if self._of_output is None else self._of_output(output)
        if not isinstance(embedding, Tensor) or embedding.shape[:-1] != pixels.shape[:1]:
            got = list(embedding.shape) if isinstance(embedding, Tensor) else type(embedding)
            raise ValueError(f"embedding must return [B, E] for {len(pixels)} images, got {got}")
        values = torch.stack(means, 1), torch.stack(phis, 1), embedding
        return Observation(*(value.detach().float().cpu() for value in values))

    def _normalised(self, pixels: Tensor) -> Tensor:
        return ((pixels.to(self._like.device).float() / 255 - 0.5) / 0.5).to(self._like.dtype)


class MeanPatchToken:
    """The L2-normalised mean patch token behind the blocks, after the norm that follows them.

    Which norm that is, the model's first pass tells: the first one to be given what the last block
    returned, or its class token or a mean of it. Without one, the tokens count as they are.
    """

    def __init__(self, vit: nn.Module, last: AttentionSite) -> None:
        self._prefix = last.stack.prefix_tokens
        self._sequence_first = last.form is not None and last.form.sequence_first
        self._tokens: Tensor | None = None
        self._norm: nn.Module | None = None
        vit.get_submodule(last.stack.blocks[-1]).register_forward_hook(self._keep)
        blocks = last.stack.blocks[-1].rpartition(".")[0]
        self._listening = [
            module.register_forward_hook(self._listen)
            for name, module in vit.named_modules()
            if _is_norm(module) and not name.startswith(f"{blocks}.")
        ]

    def take(self) -> Tensor:
        """Of the pass just made, [B, D], float32."""
        for handle in self._listening:
            handle.remove()
        self._listening = []
        tokens, self._tokens = self._tokens, None
        if tokens is None or tokens.dim() != 3:
            got = None if tokens is None else list(tokens.shape)
            raise UnsupportedModelError(
                f"wanted tokens [B, N, D] from the last block, got {got}: give fit_gauge embedding="
            )
        normed = tokens if self._norm is None else self._norm(tokens)
        return F.normalize(normed[:, self._prefix :].float().mean(1), dim=-1)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        tokens = output[0] if isinstance(output, tuple) else output
        tokens = tokens if isinstance(tokens, Tensor) else None
        if tokens is not None and self._sequence_first:
            tokens = tokens.transpose(0, 1)
        self._tokens = tokens

    def _listen(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tokens, given = self._tokens, args[0] if args else None
        if self._norm is not None or tokens is None or not isinstance(given, Tensor):
            return
        patches = tokens[:, self._prefix :]
        forms = (tokens, tokens.transpose(0, 1), patches, tokens[:, 0])
        means = (patches.mean(1), tokens.mean(1))
        if any(_same(given, tokens) for tokens in (*forms, *means)):
            self._norm = module


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-5)


def _is_norm(module: nn.Module) -> bool:
    batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return "norm" in type(module).__name__.lower() and not batch and not list(module.children())


def _image_size(model: nn.Module) -> int:
    """The side of the images that a model says it is made for."""
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name in _SIZES:
                size = getattr(holder, name, None)
                sides = size if isinstance(size, (tuple, list)) else (size,)
                if all(type(side) is int and side > 0 for side in sides) and len(set(sides)) == 1:
                    return int(sides[0])
    raise ValueError(
        f"{type(model).__name__} does not say the size of its images, or they are not square: say "
        "image_size="
    )
