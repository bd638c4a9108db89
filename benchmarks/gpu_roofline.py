# SPDX-License-Identifier: Apache-2.0
"""What an operator has to do at least, what a device can do at most, and the time that follows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gpu_timing import Timer


@dataclass(frozen=True)
class Cost:
    """Bytes that any implementation moves: every input read once, every output written once.

    ``unit`` says which of a device's rates the arithmetic can use: float32, or bfloat16 for the
    tensor cores at 16 bits.
    """

    bytes: int
    flops: int
    unit: str = "float32"


@dataclass(frozen=True)
class Peak:
    """Bytes per second of the memory, and FLOP/s of dense products."""

    name: str
    bandwidth: float
    float32: float
    bfloat16: float


# By the driver's name of the device; from the vendor's data sheets, without sparsity.
NOMINAL = {
    "NVIDIA B200": Peak("B200", 8.0e12, 75e12, 2250e12),
    "NVIDIA H200": Peak("H200 SXM", 4.8e12, 67e12, 990e12),
    "NVIDIA H100 80GB HBM3": Peak("H100 SXM", 3.35e12, 67e12, 990e12),
    "NVIDIA H100 NVL": Peak("H100 NVL", 3.9e12, 60e12, 835e12),
    "NVIDIA H100 PCIe": Peak("H100 PCIe", 2.0e12, 51e12, 756e12),
    "NVIDIA A100-SXM4-80GB": Peak("A100 SXM 80GB", 2.039e12, 19.5e12, 312e12),
    "NVIDIA A100 80GB PCIe": Peak("A100 PCIe 80GB", 1.935e12, 19.5e12, 312e12),
    "NVIDIA A100-SXM4-40GB": Peak("A100 SXM 40GB", 1.555e12, 19.5e12, 312e12),
    "NVIDIA A100-PCIE-40GB": Peak("A100 PCIe 40GB", 1.555e12, 19.5e12, 312e12),
    "NVIDIA L4": Peak("L4", 0.3e12, 30.3e12, 121e12),
    "NVIDIA GeForce RTX 4090": Peak("RTX 4090", 1.008e12, 82.6e12, 165.2e12),
}
H100_SXM = NOMINAL["NVIDIA H100 80GB HBM3"]


@dataclass(frozen=True)
class Bound:
    """The least time of a cost on a device, and which of its limits sets it."""

    seconds: float
    limit: str  # memory or arithmetic


def bound(cost: Cost, peak: Peak) -> Bound:
    memory = cost.bytes / peak.bandwidth
    arithmetic = cost.flops / getattr(peak, cost.unit)
    return Bound(memory, "memory") if memory >= arithmetic else Bound(arithmetic, "arithmetic")


def note(cost: Cost, peak: Peak) -> str:
    """How the header comment of a kernel puts it."""
    least = bound(cost, peak)
    if least.limit == "memory":
        limit = f"{peak.bandwidth / 1e12:g} TB/s"
    else:
        limit = f"{getattr(peak, cost.unit) / 1e12:g} TFLOP/s"
    return (
        f"{cost.bytes / 1e6:.2f} MB, {cost.flops / 1e6:.1f} MFLOP: {least.seconds * 1e6:.2f} us "
        f"expected on an {peak.name} ({limit})"
    )


def measured(device: torch.device, timer: Timer, buffer_bytes: int, gemm: int) -> Peak:
    """What a copy and square products reach on this device."""
    source = torch.empty(buffer_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)

    def median(function, *arguments) -> float:
        function(*arguments)
        return statistics.median(timer(lambda: function(*arguments)) for _ in range(7))

    bandwidth = 2 * buffer_bytes / median(target.copy_, source)
    del source, target
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(gemm, gemm, device=device).to(dtype)
        rates[dtype] = 2 * gemm**3 / median(torch.mm, a, a)
    return Peak("measured", bandwidth, rates[torch.float32], rates[torch.bfloat16])
