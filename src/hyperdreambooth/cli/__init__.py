"""The program `hdb`: one sub-command per arrow of the data's way, no logic.

Results are files; what is for people goes to standard error, and `--json` prints one object on standard output. Exit
status: 0 done, 2 wrong use or bad input, 1 work that failed on the way. Heavy libraries load inside the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import typer

from hyperdreambooth.cli import evaluating, exchanging, measuring, studying, training, using
from hyperdreambooth.cli.console import print_error
from hyperdreambooth.errors import HyperDreamBoothError, UserError

app = typer.Typer(
    help="One photograph to a personalised text-to-image model in seconds and 100 to 200 KB.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "People and pictures": (using.personalize, using.generate, using.inspect, using.mix, using.demo),
    "Other programs": (exchanging.export, exchanging.import_, exchanging.push, exchanging.pull),
    "Training": (training.portraits, training.split, training.preoptimize, training.train),
    "Comparing": (evaluating.evaluate, evaluating.report, measuring.convert),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.rstrip("_"), rich_help_panel=panel)(command)
app.add_typer(studying.study_app, name="study", rich_help_panel="Comparing")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (default: the process's own) and leave with its exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on packages is for programmers
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; its exit status. Every error is one line on standard error."""
    try:
        return int(app(list(arguments) or ["--help"], prog_name="hdb", standalone_mode=False) or 0)
    except HyperDreamBoothError as error:
        print_error(str(error))
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:
        if usage := getattr(error, "format_message", None):  # the parser's own errors
            print_error(f"{usage().rstrip('.')}: see hdb --help")
            return 2
        print_error(f"{type(error).__name__}: {error} (not foreseen: please report it with the command line)")
        return 1
