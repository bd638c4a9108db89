# SPDX-License-Identifier: Apache-2.0
"""Real processes killed at random moments: the same command ends with the undisturbed table.

``FIQA_FAST_KILL_RUNS=50`` makes it the long test, over 5,000 images.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from kills import SCENARIOS, Campaign, Folder, Run, contents, prepare

LONG = int(os.environ.get("FIQA_FAST_KILL_RUNS", "0"))


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("kills"), 5000 if LONG else 500, seed=5)


def test_killed_runs_end_with_the_undisturbed_table(campaign: Campaign) -> None:
    campaign.run(LONG or 2, (1, 5) if LONG else (2, 2))
    assert not [text for story in campaign.stories for text in story.complaints]
    if LONG:
        stages = campaign.figures()["stages"]
        assert {"opening", "scoring", "finishing", "moving", "done"} <= set(stages)


def test_two_runs_at_once(campaign: Campaign) -> None:
    scenario = SCENARIOS[0]
    work = campaign.source / "work"
    expected = campaign.expected(scenario)
    prepare(work, campaign.source, scenario, campaign.images)
    folder = Folder(work / "out", scenario.table)
    first = Run(scenario.command(work, 0))
    while first.alive() and not folder.parts():
        time.sleep(0.001)
    # So that it certainly has not ended when the second asks.
    first.signal(signal.SIGSTOP)
    second = Run(scenario.command(work, 0))
    status, text = second.end()
    first.signal(signal.SIGCONT)
    assert status == 2, text
    assert text.count("\n") == 1
    assert f"another run is writing it (process {first.process.pid} on " in text
    assert first.end()[0] == 0
    assert contents(folder.out) == expected
