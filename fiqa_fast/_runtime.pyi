# SPDX-License-Identifier: Apache-2.0
from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    torch: str
    cuda: str
    cuda_archs: list[str]
    isa_levels: list[str]

def build_info() -> BuildInfo: ...
def cpu_features() -> dict[str, bool]: ...
