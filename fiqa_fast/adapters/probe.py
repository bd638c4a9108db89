# SPDX-License-Identifier: Apache-2.0
"""What logits does this attention really compute? Asked of its own forward, on random tokens.

A softmax is blind to a constant added to a row of its logits, and the mean logit consists of
nothing else, so comparing outputs would prove nothing. The probe listens to the dispatcher below
``forward`` and takes the logits themselves: what enters the softmax, or what a fused
scaled-dot-product attention would feed to it.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_SOFTMAX = ("_softmax", "_safe_softmax")
_FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable",
)


class _Listener(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.logits: list[Tensor] = []
        self.rounded = False  # forward casts to a shorter dtype by itself

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _SOFTMAX:
            self.logits.append(args[0].detach().double())
        elif name in _FUSED:
            bound = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            self.logits.append(_fused_logits(bound))
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in (torch.bfloat16, torch.float16):
            self.rounded = True
        return out


def _fused_logits(bound: dict[str, Any]) -> Tensor:
    q, k = bound["query"].detach().double(), bound["key"].detach().double()
    scale = bound.get("scale")
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    if k.shape[1] != q.shape[1]:  # grouped keys
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits: Tensor = factor * q @ k.transpose(-2, -1)
    mask = bound.get("attn_mask")
    if mask is not None:
        logits = logits + mask.double()
    if bound.get("is_causal"):
        rows, columns = logits.shape[-2:]
        later = torch.ones(rows, columns, dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(later, -math.inf)
    return logits


def randomised_copy(attention: nn.Module) -> nn.Module:
    """A float32 copy on the CPU, in eval mode, whose parameters are all of ordinary size.

    Freshly initialised biases, relative position tables and norms are often exactly zero or one,
    and a term that is zero today would go unseen.
    """
    # Tensors of the last pass that a module keeps (attention maps, weights of an old-style
    # weight_norm) may hang in a graph, and those cannot be copied.
    kept = [v for m in attention.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    twin = copy.deepcopy(attention, {id(t): t.detach().clone() for t in kept})
    twin = twin.to("cpu", torch.float32).eval()
    generator = torch.Generator("cpu").manual_seed(0)
    tensors = [*twin.parameters(), *(b for b in twin.buffers() if b.is_floating_point())]
    with torch.no_grad():
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter) or not tensor.any():
                fan = tensor.shape[-1] if tensor.dim() > 1 else 4
                noise = torch.randn(tensor.shape, generator=generator, device="cpu")
                tensor.copy_(noise / math.sqrt(fan))
    config: Any = getattr(twin, "config", None)
    # Flash kernels are no part of the dispatcher's own and need not run on a CPU; they take the
    # same q, k and scale.
    if getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        config._attn_implementation = "eager"
    return twin


def observed_logits(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], bool]:
    """Logits [B, H, N, N], float64, of every softmax that one forward pass takes.

    Also whether the pass rounds to a 16-bit dtype on its way, as mixed precision built into a
    forward does.
    """
    listener = _Listener()
    # With gradients enabled MultiheadAttention does not take its one-kernel inference path.
    with (
        warnings.catch_warnings(),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        listener,
    ):
        warnings.simplefilter("ignore")
        attention(*args, **kwargs)
    return listener.logits, listener.rounded
