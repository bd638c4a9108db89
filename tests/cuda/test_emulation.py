# SPDX-License-Identifier: Apache-2.0
"""The emulator itself: that it does what the PTX ISA says, and reports what CUDA forbids."""

from __future__ import annotations

import pytest
import torch

from emulation.calls import Call, EmulationError, Options

SEEDS = range(5)


def probe(operation, shape=(64,), **numbers):
    return Call(operation, {"out": torch.empty(shape)}, ("out",), numbers)


FORBIDDEN = {
    "part_of_the_block_at_a_barrier": r"waits in __syncthreads .* for ever: thread \d+ has ended",
    "two_barriers_at_once": r"is at another barrier, meetings.cu:\d+, than thread \d+",
    "lane_missing_from_a_shuffle": r"waits in __shfl_sync .* for ever: thread (5|37) has ended",
    "lane_at_a_barrier_instead": r"is at another barrier|for ever: thread \d+ waits",
    "shuffle_meets_vote": r"calls __\w+_sync .* where others of its mask call __\w+_sync",
    "mask_without_its_caller": r"calls __shfl_sync with a mask that leaves it out",
    "reads_a_lane_outside_the_mask": r"lane \d reads lane 9, which the mask leaves out",
    "part_of_a_warp": r"waits in __shfl_sync .* its mask names lanes that the block has not",
    "too_many_threads": r"cannot have 1 blocks of 2048 threads",
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("operation", FORBIDDEN)
def test_reports_what_never_meets(operation, seed, emulator):
    with pytest.raises(EmulationError, match=FORBIDDEN[operation]) as caught:
        emulator.run(probe(operation), Options(seed))
    if operation != "too_many_threads":
        assert "launched at meetings.cu:" in str(caught.value)
        assert "block " in str(caught.value)
        assert "thread " in str(caught.value)
    # An error leaves nothing behind.
    emulator.run(probe("hand_over_syncthreads", 32))


def test_reports_the_same_under_address_sanitizer(address_sanitizer):
    for operation, text in FORBIDDEN.items():
        with pytest.raises(EmulationError, match=text):
            address_sanitizer.run(probe(operation))


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_memory_is_poisoned_before_every_block(seed, emulator):
    got = emulator.run(probe("fresh_shared_memory", (3, 2, 32)), Options(seed))["out"]
    assert torch.equal(got.view(torch.int32), torch.full((3, 2, 32), -1, dtype=torch.int32))


@pytest.mark.parametrize("operation", ["past_declared_shared", "past_dynamic_shared"])
def test_address_sanitizer_guards_shared_memory(operation, address_sanitizer):
    address_sanitizer.run(probe(operation, past=0))
    with pytest.raises(EmulationError, match=r"buffer-overflow|insufficient space"):
        address_sanitizer.run(probe(operation, past=1))


def test_wide_loads_need_their_alignment(address_sanitizer):
    call = probe("wide_unaligned_read", 1)
    call.tensors["in"] = torch.zeros(8)
    with pytest.raises(EmulationError, match="misaligned address"):
        address_sanitizer.run(call)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["unordered", "syncwarp", "shuffle", "syncthreads"])
def test_thread_sanitizer_knows_what_orders_memory(how, seed, thread_sanitizer):
    call = probe(f"hand_over_{how}", 32)
    if how in ("syncwarp", "syncthreads"):
        got = thread_sanitizer.run(call, Options(seed))["out"]
        assert torch.equal(got, (torch.arange(32.0) + 1) % 32)
    else:
        # A shuffle exchanges registers and promises nothing about memory.
        with pytest.raises(EmulationError, match="ThreadSanitizer: data race"):
            thread_sanitizer.run(call, Options(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles(seed, emulator):
    lane = torch.arange(64) % 32
    first = lane // 8 * 8
    expected = [
        torch.full((64,), 3),
        first + (lane + 1) % 8,
        torch.where(lane < 2, lane, lane - 2),
        torch.where(lane % 8 < 1, lane, lane - 1),
        torch.where(lane > 29, lane, lane + 2),
        torch.where(lane % 8 > 6, lane, lane + 1),
        lane ^ 5,
        torch.where(lane ^ 16 > first + 7, lane, lane ^ 16),
    ]
    got = emulator.run(probe("shuffles", (8, 64)), Options(seed))["out"]
    assert torch.equal(got, torch.stack(expected).float())


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_of_a_warp_meet_on_their_own(seed, emulator):
    sums, balloted, voted = emulator.run(probe("votes", (3, 32)), Options(seed))["out"]
    assert torch.equal(sums, torch.tensor([16.0] * 16 + [4.0] * 16))
    assert (balloted == 11).all()
    assert torch.equal(voted, torch.tensor([2.0] * 16 + [1.0] * 16))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_thread_gets_one_ticket(seed, emulator):
    got = emulator.run(probe("tickets", 120), Options(seed))["out"]
    assert torch.equal(got.sort().values, torch.arange(120.0))
    if seed < 2:
        assert torch.equal(got, torch.arange(120.0) if seed == 0 else 119 - torch.arange(120.0))
    else:
        assert not torch.equal(got, emulator.run(probe("tickets", 120), Options(seed + 1))["out"])
        assert torch.equal(got, emulator.run(probe("tickets", 120), Options(seed))["out"])


def test_a_limited_grid(emulator):
    got = emulator.run(probe("tickets", 120), Options(max_blocks=2))["out"]
    assert torch.equal(got[:80], torch.arange(80.0))
    assert got[80:].isnan().all()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tensor_core_product(dtype, seed, late, emulator):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(8, 16).to(dtype)
    call = Call("product", {"a": a, "b": b, "out": torch.empty(16, 8)}, ("out",))
    got = emulator.run(call, Options(seed, late))["out"]
    torch.testing.assert_close(got.double(), 2 * a.double() @ b.double().T, atol=4e-6, rtol=0)


def test_copies_land_at_once_or_when_waited_for(emulator):
    data = torch.arange(8.0)
    call = Call("copy_stages", {"in": data, "out": torch.empty(3, 12)}, ("out",))
    expected = torch.cat([data, torch.zeros(4)])
    assert torch.equal(emulator.run(call)["out"], expected.expand(3, 12))
    before, between, after = emulator.run(call, Options(late_copies=True))["out"]
    assert before.isnan().all()
    assert torch.equal(between[:4], data[:4])
    assert between[4:].isnan().all()
    assert torch.equal(after, expected)


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ("copy_to_global", "the address is not in shared memory"),
        ("copy_unaligned", "the address in global memory is not aligned"),
    ],
)
def test_copies_check_their_addresses(operation, text, emulator):
    call = Call(operation, {"in": torch.zeros(8), "out": torch.empty(4)}, ("out",))
    with pytest.raises(EmulationError, match=text):
        emulator.run(call)


def test_float16_is_widened_exactly(emulator):
    """Every float16 there is, through the kernel that reads them."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    bits = bits[bits.isfinite()].view(1, 1, -1, 1)
    call = Call(
        "attention_logits_mean",
        {
            **{"q": bits.transpose(2, 3), "k": bits.transpose(2, 3)},
            **{"q_mean": torch.empty(1, 1, bits.numel()), "head_scores": torch.empty(1, 1)},
            **{"query_map": torch.empty(1, 1), "key_map": torch.empty(1, 1)},
        },
        ("q_mean", "head_scores", "query_map", "key_map"),
        {"scale": 1.0},
    )
    assert torch.equal(emulator.run(call)["q_mean"].flatten(), bits.flatten().float())


def test_names_what_it_lacks(emulator):
    with pytest.raises(EmulationError, match="no operation nothing"):
        emulator.run(probe("nothing"))
    with pytest.raises(EmulationError, match="the call has no array x"):
        emulator.run(probe("mean_layer_norm", eps=1e-5))
