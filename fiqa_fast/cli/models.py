# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast models``: the architectures that checkpoints are recognised as."""

from __future__ import annotations

import dataclasses
import json

import click

__all__ = ["command"]

_COLUMNS = (  # heading, field of the configuration
    ("patch", "patch_size"),
    ("dim", "embed_dim"),
    ("depth", "depth"),
    ("heads", "num_heads"),
    ("mlp", "mlp_ratio"),
)
_EXPLANATION = """\
A checkpoint's architecture is read from the shapes of its weights. The number of heads leaves no
trace in them: it is that of the architecture above with the same shapes, or is given, as
--architecture num_heads=8. `fiqa-fast score --model PATH` takes safetensors files and torch.save
files of plain tensors."""


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the architectures that checkpoints are recognised as.

    With each: where published checkpoints are found, and their terms. Only `starter` comes with
    this package.

    \b
    Examples:
      fiqa-fast models
      fiqa-fast models --json
      fiqa-fast score crops/ --model vit.pt --architecture cvlface_vit_small
    """
    from fiqa_fast.models.registry import ARCHITECTURES

    if as_json:
        entries = {name: dataclasses.asdict(entry) for name, entry in ARCHITECTURES.items()}
        click.echo(json.dumps(entries, indent=2))
        return
    width = max(map(len, ARCHITECTURES))
    click.echo(f"{'name':<{width}}  " + "  ".join(f"{heading:>5}" for heading, _ in _COLUMNS))
    families: dict[tuple[str, str, str], list[str]] = {}
    for name, entry in ARCHITECTURES.items():
        numbers = "  ".join(f"{getattr(entry.config, field):>5g}" for _, field in _COLUMNS)
        click.echo(f"{name:<{width}}  {numbers}")
        families.setdefault((entry.family, entry.source, entry.terms), []).append(name)
    for (family, source, terms), names in families.items():
        click.echo(f"\n{family}: {', '.join(names)}")
        click.echo(f"  source  {source}")
        click.echo(f"  terms   {terms}")
    click.echo(f"\n{_EXPLANATION}")
