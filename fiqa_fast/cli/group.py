# SPDX-License-Identifier: Apache-2.0
"""The command group, which imports a command's file only when that command is named."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import click

__all__ = ["Interrupted", "PipeClosed", "group", "version"]

# name -> what it does, in the order a newcomer needs them; the rest is in fiqa_fast/cli/<name>.py
_COMMANDS = {
    "score": "Score folders, image files and lists of them.",
    "heatmap": "Draw where in each image the quality comes from.",
    "evaluate": "Judge quality scores by the errors of a face matcher.",
    "calibrate": "Fit a gauge to a model, on unlabelled crops.",
    "bench": "Measure images per second beside the published computation and other engines.",
    "models": "List the architectures that checkpoints are recognised as.",
    "info": "Show versions, devices and which kernels are in use.",
}


class Interrupted(Exception):  # noqa: N818 - not an error
    """The user pressed Ctrl-C."""


class PipeClosed(Exception):  # noqa: N818 - not an error
    """Nobody reads the output any more."""


class _LazyGroup(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        # click would write an empty line for the one, and exit with an error for the other.
        except KeyboardInterrupt as error:
            raise Interrupted from error
        except BrokenPipeError as error:
            raise PipeClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"fiqa_fast.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"fiqa-fast {version()}")
        ctx.exit()


def version() -> str:
    """Return the installed version without importing the package's heavy half."""
    try:
        return importlib.metadata.version("fiqa_fast")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def group(**_: Any) -> None:
    """Quality of aligned face images from the Vision Transformer that recognises them.

    \b
    fiqa-fast score crops/                        scores on the terminal
    fiqa-fast score crops/ -o scores.parquet      scores as a table
    fiqa-fast COMMAND --help                      all options, with examples
    """
