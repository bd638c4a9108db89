# SPDX-License-Identifier: Apache-2.0
from typing import Any, TypedDict

import numpy as np

class BuildInfo(TypedDict):
    compiler: str
    torch: str
    cuda: str
    cuda_archs: list[str]
    isa_levels: list[str]

def build_info() -> BuildInfo: ...
def cpu_features() -> dict[str, bool]: ...

_Array = np.ndarray[Any, Any]
_Norm = tuple[_Array, _Array, float]
_Linear = tuple[_Array, _Array | None]

class Network:
    """A vision transformer's blocks, packed for one instruction set level and number format."""

    def __init__(
        self,
        *,
        level: str,
        format: str,
        image_size: int,
        patch_size: int,
        prefix: int,
        dim: int,
        heads: int,
        hidden: int,
        relu6: bool,
        depth: int,
        max_images: int,
        embedding: _Array,
        positions: _Array,
    ) -> None: ...
    def set_block(
        self,
        number: int,
        *,
        scale: float,
        norm1: _Norm,
        qkv: _Linear,
        proj: _Linear,
        norm2: _Norm,
        fc1: _Linear,
        fc2: _Linear,
    ) -> None: ...
    @property
    def stride(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...
    @property
    def own_bytes(self) -> int: ...

class Pass:
    """Some images on their way through some blocks, by any number of threads."""

    def __init__(
        self,
        network: Network,
        first: int,
        last: int,
        images: int,
        x: _Array,
        pixels: _Array | None = None,
        threads: int = 1,
    ) -> None: ...
    def work(self) -> None: ...
