# SPDX-License-Identifier: Apache-2.0
"""The architectures that published face ViT checkpoints have, recognised by their shapes.

The number of heads leaves no trace in the weights, so it comes from this table (all other shapes
equal: the same architecture) or from the caller.
"""

from __future__ import annotations

import dataclasses

from .config import ViTConfig


@dataclasses.dataclass(frozen=True)
class ArchitectureEntry:
    """One row of the table: what it looks like, who published it, where, under which terms."""

    config: ViTConfig
    family: str
    source: str
    terms: str

    @property
    def fingerprint(self) -> tuple[object, ...]:
        return fingerprint(self.config)


def fingerprint(config: ViTConfig) -> tuple[object, ...]:
    """Everything that shows in the weights, less the embedding width, which varies freely."""
    return (
        config.img_size,
        config.patch_size,
        config.embed_dim,
        config.depth,
        config.hidden_dim,
        config.qkv_bias,
    )


def _cvlface(depth: int, num_heads: int, mlp_ratio: int) -> ArchitectureEntry:
    return ArchitectureEntry(
        ViTConfig(8, 512, depth, num_heads, mlp_ratio),
        family="CVLface (also the backbones of ATTN-FIQA)",
        source="github.com/mk-minchul/CVLface, cvlface/pretrained_models; huggingface.co/minchul, "
        "for instance cvlface_adaface_vit_base_webface4m",
        terms="trained on WebFace data sets, which are for research only: read each model card",
    )


def _arcface(embed_dim: int, depth: int) -> ArchitectureEntry:
    return ArchitectureEntry(
        ViTConfig(9, embed_dim, depth, 8, 4),
        family="insightface arcface_torch",
        source="github.com/deepinsight/insightface, recognition/arcface_torch, its model zoo",
        terms="pretrained models for non-commercial research only",
    )


ARCHITECTURES: dict[str, ArchitectureEntry] = {
    "cvlface_vit_small": _cvlface(depth=12, num_heads=8, mlp_ratio=5),
    "cvlface_vit_base": _cvlface(depth=24, num_heads=16, mlp_ratio=3),
    "arcface_vit_t": _arcface(embed_dim=256, depth=12),
    "arcface_vit_s": _arcface(embed_dim=512, depth=12),
    "arcface_vit_b": _arcface(embed_dim=512, depth=24),
    "arcface_vit_l": _arcface(embed_dim=768, depth=24),
    "arcface_vit_h": _arcface(embed_dim=1024, depth=48),
    "starter": ArchitectureEntry(
        ViTConfig(14, 256, 8, 4, 4, num_classes=128),
        family="fiqa_fast (CVLface layout)",
        source="inside this package",
        terms="Apache-2.0, see its NOTICE; for demonstration, tests and research",
    ),
}
