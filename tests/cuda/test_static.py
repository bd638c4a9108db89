# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the CUDA kernels: registers, spills, wide loads, and proofs on PTX."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from static import compiled
from static.launches import LAUNCHES, Launch
from static.renew import TABLE, measured

pytestmark = pytest.mark.skipif(compiled.nvcc() is None, reason="no nvcc")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compiled.compile_all()


@pytest.mark.parametrize("arch", compiled.ARCHS)
def test_no_kernel_spills(arch):
    if compiled.nvcc_release() != "13.0":
        pytest.skip(f"launch bounds suit nvcc 13.0, this is {compiled.nvcc_release()}")
    resources = compiled.resources(arch)
    assert len(resources) > 20
    spills = {name: r.spill_bytes for name, r in resources.items() if r.spill_bytes}
    assert not spills, spills


def test_resources_are_those_of_the_table():
    """Renewed by tests/cuda/static/renew.py, after a look at what changed and why."""
    table = json.loads(TABLE.read_text())
    if table["nvcc"] != compiled.nvcc_release():
        pytest.skip(f"the table is of nvcc {table['nvcc']}, this is {compiled.nvcc_release()}")
    assert measured() == table["kernels"]


@pytest.mark.parametrize("arch", compiled.ARCHS)
def test_vector_variants_load_16_bytes_at_a_time(arch):
    if compiled.disassembler() is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    for source in compiled.sources():
        code = compiled.machine_code(source, arch)
        vector = {name: text for name, text in code.items() if ", vector>" in name}
        assert vector, source.stem
        for name, text in vector.items():
            assert re.search(r"LDG(STS)?\.E(\.\w+)*\.128", text), f"{source.stem}.{name}"


@pytest.mark.parametrize("arch", compiled.ARCHS)
def test_tiles_of_16_bits_run_on_tensor_cores(arch):
    """Multiplied by them, brought to them by ldmatrix, and to shared memory past the registers."""
    if compiled.disassembler() is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    source = compiled.KERNELS / "cuda/attention_logits_stats.cu"
    tiles = re.compile(r"(moments|deviations|count)<(bfloat16|float16), (vector|scalar)>")
    found = 0
    for name, text in compiled.machine_code(source, arch).items():
        if not tiles.fullmatch(name):
            continue
        found += 1
        assert "HMMA.16816.F32" in text, name
        assert re.search(r"LDSM\.16\.\w+\.4", text), name
        assert "vector" not in name or re.search(r"LDGSTS\.E\.BYPASS\.128", text), name
    assert found == 12


def ptx_of(launch: Launch) -> Path:
    return compiled.ptx(compiled.KERNELS / f"cuda/{launch.operator}.cu", "100")


def proved(launch: Launch, ptx: Path, folder: Path) -> str:
    """What SentryWard says of a launch, with its diagnostics where that is not race_free."""
    from sentryward import verify

    entries = re.findall(r"\.entry (\w+)", ptx.read_text())
    entry = next(e for e in entries if compiled.kernel_name(e) == launch.kernel)
    config = folder / f"{entry}-{'x'.join(map(str, launch.shape))}.json"
    config.write_text(json.dumps(launch.input(entry)))
    result = verify(ptx, input=config, timeout_seconds=300)
    if result["result"] == "race_free":
        return "race_free"
    return f"{result['result']}: {json.dumps(result.get('diagnostics'))[:500]}"


def test_no_schedule_has_a_race(tmp_path):
    """By SentryWard: for every launch, in any order of threads."""
    pytest.importorskip("sentryward", reason="no sentryward: pip install sentryward")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda launch: proved(launch, ptx_of(launch), tmp_path), LAUNCHES)
    failures = {str(la): r for la, r in zip(LAUNCHES, results, strict=True) if r != "race_free"}
    assert not failures, failures


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_missing_barrier_is_no_proof(dtype, tmp_path):
    pytest.importorskip("sentryward", reason="no sentryward: pip install sentryward")
    launch = next(la for la in LAUNCHES if la.kernel == f"products<{dtype}, scalar>")
    text, count = re.subn(
        r"^\s*bar\.sync\s+0;$", "", ptx_of(launch).read_text(), flags=re.MULTILINE
    )
    assert count > 0
    changed = tmp_path / "changed.ptx"
    changed.write_text(text)
    assert proved(launch, changed, tmp_path).startswith("potential_race")


def test_every_kernel_is_proved():
    """In every dtype and variant that is compiled."""
    launched = {f"{launch.operator}.{launch.kernel}" for launch in LAUNCHES}
    assert launched == set(compiled.resources("100"))
