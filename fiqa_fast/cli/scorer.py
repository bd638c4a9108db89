# SPDX-License-Identifier: Apache-2.0
"""From options to a scorer, and what its scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fiqa_fast.models import FaceViT
    from fiqa_fast.scorer import Scorer

__all__ = ["make_scorer", "meaning"]


def make_scorer(
    model: FaceViT,
    outputs: Sequence[str],
    exit_block: int | None,
    options: Mapping[str, Any],
) -> tuple[Scorer, int]:
    """Return the scorer that the options describe, and the side of the images it wants."""
    import fiqa_fast

    settings = dict(options)
    if settings.get("gauge") == "none":
        settings["gauge"] = None
    try:
        scorer = fiqa_fast.Scorer(model, outputs=tuple(outputs), exit=exit_block, **settings)
    except (ValueError, TypeError, RuntimeError) as error:
        # What a scorer refuses is an option out of the model's range, or a device that is not
        # there, for which torch has a RuntimeError.
        raise click.ClickException(str(error)) from error
    return scorer, model.config.img_size


def meaning(scorer: Scorer) -> str:
    """Say what the scores are, for a reader who will see the numbers alone."""
    facts = scorer.describe()
    attention = facts["method"] == "attn-fiqa"
    parts = [facts["method"]]
    if attention:
        parts.append(facts["reduction"])
        if facts["heads"] != "all":
            parts.append(f"heads {facts['heads']}")
    parts.append(f"exit {facts['exit']}")
    if facts["fusion"] is not None:
        parts.append(f"{facts['fusion']} fusion")
    if attention:
        parts.append("published scores" if scorer.gauge is None else "calibrated by its gauge")
    return ", ".join(parts)
