# SPDX-License-Identifier: Apache-2.0
"""``Scorer``: images in, quality out."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .engine import ENGINES, make_engine
from .engine.engine import Engine
from .errors import ImageError
from .hardware import FLOAT32_PRECISIONS, floating, resolve_device, resolve_dtype
from .images import load_image, resize
from .models.gauge import (
    SUFFIX,
    Gauge,
    check_gauge,
    check_gauge_shape,
    load_gauge,
    state_dict_sha256,
)
from .models.vit import FaceViT
from .options import TOKENS, check_name, checked_outputs
from .quality import attn_fiqa, vit_fiqa
from .quality.attn_fiqa import AttnFiqa
from .quality.fusion import FUSIONS
from .quality.method import QualityMethod
from .quality.reductions import REDUCTIONS, Heads
from .quality.vit_fiqa import VitFiqa
from .workers import begin_alone, run_alone

if TYPE_CHECKING:
    import PIL.Image

    ImageLike = str | Path | PIL.Image.Image | np.ndarray[Any, Any]

METHODS = ("attn-fiqa", "vit-fiqa", "ex-fiqa")
OUTPUTS = ("score", "embedding", *attn_fiqa.OUTPUTS[1:])
# Normalised pixels lie within 1; augmentation may take them a little beyond, 0..255 far beyond.
NORMALIZED_LIMIT = 4.0


@dataclasses.dataclass(frozen=True, eq=False)
class QualityResult:
    """What a :class:`Scorer` returns: CPU float32 tensors; what was not asked for is ``None``.

    Attributes:
        score: [B], higher is better.
        embedding: [B, num_classes], the whole model's, not normalised.
        patch_map: [B, gh, gw], what each patch receives; its mean is the score (for the mean
            over heads, gauge included).
        query_map: [B, gh, gw], mean published logit of each patch's query.
        head_scores: [B, H], published mean logit of each head.
        exit_scores: [B, L], the score that each block alone would give, whatever ``exit`` is.
        head_maps: [B, H, gh, gw], what each patch receives in each head, published logits; their
            mean over the heads is the published patch map over all heads. Fused as the score is.
        exit_maps: [B, L, gh, gw], the patch map that each block alone would give, whatever
            ``exit`` and ``fusion`` are; calibrated as ``exit_scores`` are.
    """

    score: Tensor | None = None
    embedding: Tensor | None = None
    patch_map: Tensor | None = None
    query_map: Tensor | None = None
    head_scores: Tensor | None = None
    exit_scores: Tensor | None = None
    head_maps: Tensor | None = None
    exit_maps: Tensor | None = None

    def _present(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        return max((len(value) for value in self._present().values()), default=0)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in self._present().items())
        return f"QualityResult({shapes})"


class Scorer:
    """Scores face images with a ViT, at the cost of less than its forward pass.

    Args:
        model: from :func:`fiqa_fast.load_model`. The scorer keeps its own copy of the weights.
        method: ``"attn-fiqa"``: the mean pre-softmax attention logit (arXiv 2604.22841);
            ``"vit-fiqa"``: the quality head of a ViT-FIQA model (arXiv 2508.13957);
            ``"ex-fiqa"``: the same head after block ``exit``, or fused (arXiv 2604.22842).
        outputs: any of score, embedding, patch_map, query_map, head_scores, exit_scores,
            head_maps, exit_maps; all from one pass.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``.
        dtype: of the blocks' products: float32, bfloat16, float16, int8 (of the native engine, on
            a CPU), or auto: bfloat16 where it is the faster, else float32. Residual stream,
            norms and the quality itself are float32 always.
        float32_precision: ``"highest"`` is IEEE float32 whatever torch's global settings say;
            ``"high"`` allows split-precision products.
        gauge: ``"auto"`` takes the gauge that comes with the model, if any; ``None`` gives
            published values; else a gauge file or :class:`Gauge`. It applies to the mean over all
            heads: ``auto`` leaves it out elsewhere.
        reduction: of attn-fiqa: mean, median, max, inverse_std, row_variance or
            centered_variance. Median, max and inverse_std take heads of up to 128 features.
        heads: of attn-fiqa: ``"all"``, ``"average"`` (head-averaged logits) or one head's number
            from 0.
        tokens: of attn-fiqa: ``"patch"`` leaves a model's quality token out, ``"all"`` does not.
        exit: 1..depth, the last by default. attn-fiqa: the block whose logits count, for which
            blocks 1..exit-1 run; ex-fiqa: the block after which the head is applied.
        engine: what runs the blocks: ``"native"`` (our own kernels, on a CPU, in float32,
            bfloat16 or int8), ``"graphs"`` (torch's operators and our own as one CUDA graph, on a
            GPU), ``"eager"`` (the operators one by one, anywhere), or ``"auto"``: native or graphs
            where it can be, and otherwise eager, for which ``engine_note`` then has the reason.
        fusion: of attn-fiqa and ex-fiqa: ``"uniform"`` or ``"depth"`` (weights proportional to
            depth) over the exits 1..``exit``.

    Results do not depend on how images are batched, on the number of threads
    (``torch.set_num_threads``) or on other images of the batch, bitwise, on one machine and
    build. May be called from several threads, and first used in a forked process; on a GPU, where
    CUDA does not survive a fork, it has to be made there.

    Raises:
        ValueError: an option is not known or does not fit the model.
        CheckpointError: the gauge is unreadable or of another model.
    """

    def __init__(
        self,
        model: FaceViT,
        method: str = "attn-fiqa",
        outputs: Sequence[str] = ("score",),
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        float32_precision: str = "highest",
        gauge: str | Path | Gauge | None = "auto",
        *,
        reduction: str = "mean",
        heads: Heads = "all",
        tokens: str = "patch",
        exit: int | None = None,
        fusion: str | None = None,
        engine: str = "auto",
    ) -> None:
        if not isinstance(model, FaceViT):
            raise ValueError(
                f"model must come from fiqa_fast.load_model, got {type(model).__name__}"
            )
        if any(value.is_meta for value in model.state_dict().values()):
            raise ValueError("model must hold weights, got one on the meta device")
        check_name("method", method, METHODS)
        check_name("float32_precision", float32_precision, FLOAT32_PRECISIONS)
        check_name("reduction", reduction, REDUCTIONS)
        check_name("tokens", tokens, TOKENS)
        check_name("engine", engine, ENGINES)
        if fusion is not None:
            check_name("fusion", fusion, FUSIONS, " or none")
        self.method = method
        self.outputs = tuple(dict.fromkeys(checked_outputs(outputs, OUTPUTS)))
        heads, exit = _whole(heads), _whole(exit)
        _check_heads(heads)
        _check_exit(exit, model.config.depth)
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.float32_precision = float32_precision
        self.reduction, self.heads, self.tokens, self.fusion = reduction, heads, tokens, fusion
        self.exit = model.config.depth if exit is None else exit
        self.config = model.config
        self._model_sha256 = model.checkpoint_sha256
        self.gauge = _resolve_gauge(gauge, model, self._has_a_mean_over_heads())
        # On workers, as all torch work here: see fiqa_fast.workers.
        digest = begin_alone(lambda: _state_sha256(model))
        try:
            self._engine = run_alone(lambda: self._build(model, engine))
            self._state_sha256 = digest.result()
        finally:
            wait([digest])  # the caller may do as it likes with the model
        if self.gauge is not None:
            facts = dataclasses.asdict(self.config)
            depth, dim = self.config.depth, self.config.embed_dim
            check_gauge(self.gauge, model, depth, dim, facts, self._state_sha256)
        self.engine, self.engine_note = self._engine.name, self._engine.note

    def _build(self, model: FaceViT, engine: str) -> Engine:
        attention = self.method == "attn-fiqa"
        quality = self._attn_fiqa(model) if attention else self._vit_fiqa(model)
        return make_engine(
            engine,
            model,
            quality,
            embedding="embedding" in self.outputs,
            device=self.device,
            dtype=self.dtype,
            float32_precision=self.float32_precision,
        )

    def __repr__(self) -> str:
        facts = {name: value for name, value in self.describe().items() if "sha256" not in name}
        del facts["architecture"]
        if self.engine_note:
            facts["engine_note"] = self.engine_note
        return f"Scorer({', '.join(f'{name}={value!r}' for name, value in facts.items())})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Scorer cannot be copied or pickled: it holds weights laid out for this machine; "
            "pass the model (or its path) on and build a Scorer where it is used"
        )

    def __call__(
        self, images: Tensor | Sequence[ImageLike], normalized: bool = False
    ) -> QualityResult:
        """Score a batch of any size, 0 included.

        Args:
            images: uint8 RGB tensor [B, 3, H, W], or a list of paths, PIL images or RGB uint8
                arrays [H, W, 3]. Other sizes than the model's are resized bilinearly.
            normalized: ``images`` is a float tensor that already holds ``(x / 255 - 0.5) / 0.5``.

        Raises:
            ImageError: an image cannot be read, or has the wrong shape or dtype.
        """
        results = self._engine.run(_as_batch(images, normalized, self.config.img_size))
        side = self.config.grid_size
        for name in ("patch_map", "query_map", "head_maps", "exit_maps"):
            if name in results:
                results[name] = results[name].unflatten(-1, (side, side))
        return QualityResult(**results)

    def _has_a_mean_over_heads(self) -> bool:
        """Whether a gauge, which belongs to that mean over the patches, applies."""
        return (
            self.method == "attn-fiqa"
            and self.reduction == "mean"
            and not isinstance(self.heads, int)
            and (self.tokens == "patch" or self.config.num_prefix_tokens == 0)
        )

    def _attn_fiqa(self, model: FaceViT) -> QualityMethod:
        return AttnFiqa(
            model,
            self.outputs,
            reduction=self.reduction,
            heads=self.heads,
            tokens=self.tokens,
            exit=self.exit,
            fusion=self.fusion,
            gauge=self.gauge,
            device=self.device,
        )

    def _vit_fiqa(self, model: FaceViT) -> QualityMethod:
        if model.config.quality_head is None:
            raise ValueError(
                f"method {self.method} needs a ViT-FIQA model, which has a quality head; this one "
                "has none: use attn-fiqa"
            )
        if self.method == "vit-fiqa" and (self.exit != model.config.depth or self.fusion):
            raise ValueError("vit-fiqa reads the last block alone: use ex-fiqa for exit and fusion")
        for name, value, only in (
            ("reduction", self.reduction, "mean"),
            ("heads", self.heads, "all"),
            ("tokens", self.tokens, "patch"),
        ):
            if value != only:
                raise ValueError(f"{name}={value!r} belongs to attn-fiqa, not to {self.method}")
        for name in self.outputs:
            if name not in (*vit_fiqa.OUTPUTS, "embedding"):
                raise ValueError(f"{self.method} has no {name}: that is an output of attn-fiqa")
        return VitFiqa(
            model,
            self.outputs,
            exit=self.exit,
            fusion=self.fusion,
            device=self.device,
            dtype=floating(self.dtype, self.device),
        )

    def describe(self) -> dict[str, Any]:
        """Everything that decides the values, as JSON-able facts."""
        return {
            "method": self.method,
            "reduction": self.reduction,
            "heads": self.heads,
            "tokens": self.tokens,
            "exit": self.exit,
            "fusion": self.fusion,
            "outputs": list(self.outputs),
            "model_sha256": self._model_sha256,
            "state_sha256": self._state_sha256,
            "architecture": dataclasses.asdict(self.config),
            "gauge_sha256": None if self.gauge is None else self.gauge.sha256(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "float32_precision": self.float32_precision,
            "device": self.device.type,
            "engine": self.engine,
        }


def _state_sha256(model: FaceViT) -> str:
    known = model.checkpoint_state_sha256 if model.checkpoint_borrowed else None
    return known or state_dict_sha256(model)


def _whole(value: Any) -> Any:
    """numpy's and others' whole numbers as int; anything else as it is, to be refused by name."""
    if value is None or isinstance(value, (bool, str)):
        return value
    try:
        return operator.index(value)
    except TypeError:  # not a number, or several
        return value


def _check_heads(heads: object) -> None:
    if not isinstance(heads, (int, str)):
        raise ValueError(f'heads must be "all", "average" or a head\'s number, got {heads!r}')


def _check_exit(exit: int | None, depth: int) -> None:
    if exit is not None and (type(exit) is not int or not 1 <= exit <= depth):
        raise ValueError(f"exit must be a block's number from 1 to {depth}, got {exit!r}")


def _resolve_gauge(gauge: str | Path | Gauge | None, model: FaceViT, applies: bool) -> Gauge | None:
    """What was asked for, of the model's shape; whether it is the model's own is still to check."""
    if gauge is None:
        return None
    if not isinstance(gauge, (str, Path, Gauge)):
        raise ValueError(f'gauge must be "auto", None, a path or a Gauge, got {gauge!r}')
    automatic = isinstance(gauge, str) and gauge == "auto"
    if automatic:
        checkpoint = model.checkpoint_path
        if not applies or checkpoint is None:
            return None
        gauge = checkpoint.with_name(checkpoint.stem + SUFFIX)
        if not gauge.exists():
            return None
    elif not applies:
        raise ValueError(
            "a gauge belongs to attn-fiqa's mean over all heads: leave it out (gauge=None, "
            "--gauge none) with another method or reduction, or with one head"
        )
    if not isinstance(gauge, Gauge):
        gauge = load_gauge(gauge)
    check_gauge_shape(gauge, model.config.depth, model.config.embed_dim)
    return gauge


def _as_batch(images: Tensor | Sequence[ImageLike], normalized: bool, size: int) -> Tensor:
    """uint8 [B, 3, size, size], or float32 for normalised input."""
    if isinstance(images, Tensor):
        return _checked_tensor(images, normalized, size)
    if normalized:
        raise ImageError("normalized=True goes with a float tensor [B, 3, H, W], got a list")
    if isinstance(images, (str, Path)) or not isinstance(images, Sequence):
        raise ImageError(
            "images must be a uint8 tensor [B, 3, H, W] or a list of paths, PIL images or uint8 "
            f"arrays [H, W, 3], a list also of one; got {type(images).__name__}"
        )
    loaded = [load_image(image, size).numpy() for image in images]
    batch = np.stack(loaded) if loaded else np.zeros((0, 3, size, size), np.uint8)
    return torch.from_numpy(batch)


def _checked_tensor(images: Tensor, normalized: bool, size: int) -> Tensor:
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ImageError(f"images must be RGB [B, 3, H, W], got {list(images.shape)}")
    if images.layout != torch.strided or images.is_meta:
        raise ImageError("images must be a plain dense tensor that holds values")
    images = images.detach()
    if not normalized:
        if images.dtype != torch.uint8:
            raise ImageError(
                f"images must be uint8 (0..255), got {images.dtype}; for float images that are "
                "already (x / 255 - 0.5) / 0.5 pass normalized=True"
            )
        if images.shape[2:] == (size, size):
            return images
        return _computed(images, lambda: resize(images, size))
    if not images.is_floating_point():
        raise ImageError(f"normalized=True goes with a float tensor, got {images.dtype}")
    return _computed(images, lambda: _checked_floats(images, size))


def _computed(images: Tensor, work: Callable[[], Tensor]) -> Tensor:
    """On a worker; but a GPU's images are in order on the caller's own stream alone."""
    return run_alone(work) if images.device.type == "cpu" else work()


def _checked_floats(images: Tensor, size: int) -> Tensor:
    images = images.float()
    extreme = images.abs().flatten(1).amax(1)
    for number in (~(extreme <= NORMALIZED_LIMIT)).nonzero().flatten().tolist():
        raise ImageError(
            "normalized=True means values of (x / 255 - 0.5) / 0.5, about -1 to 1; image "
            f"{number} of the batch holds {extreme[number].item():g}"
        )
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
