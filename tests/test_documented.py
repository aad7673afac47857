"""Every command that the guides name can be given as it stands there: it and its options exist. Nothing is run."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hyperdreambooth.cli import app

ROOT = Path(__file__).parents[1]
GUIDES = ("README.md", *(f"docs/{name}.md" for name in ("comparison", "stable-diffusion", "scale", "method")))
OURS = ("benchmarks.", "recipes.")


class Parsed(Exception):
    """The options were understood, and the program would have begun."""


def in_blocks(text: str) -> list[list[str]]:
    """The words of the commands in indented lines, from the program's name on, without what follows a #."""
    found = []
    for line in re.findall(r"^ {4}(.+)$", text.replace("\\\n", " "), flags=re.MULTILINE):
        if re.search(r"\bhdb |python -m ", line):
            words = shlex.split(line, comments=True)
            found += [words[at:] for at, word in enumerate(words) if is_command(words[at:])][:1]
    return found


def in_lines(text: str) -> list[list[str]]:
    """The words of the commands in the running text, such as `hdb report RUN`."""
    found = [shlex.split(code) for code in re.findall(r"`((?:hdb|python -m) [^`]+)`", text)]
    return [words for words in found if is_command(words) and words[1] != "COMMAND"]


def is_command(words: list[str]) -> bool:
    if words[0].rpartition("/")[2] == "hdb":
        return True
    return words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith(OURS)


def check(words: list[str], whole: bool = True) -> None:
    """Raise ValueError, with the parser's own words, unless they can be parsed; `whole`: required ones are there."""
    if words[0] == "python":
        _check_module(words[2], words[3:], whole)
    else:
        _check_click(typer.main.get_command(app), words[1:], whole)


def _check_click(command: Any, words: list[str], whole: bool) -> None:
    if commands := getattr(command, "commands", None):
        if not words and not whole:  # `hdb study`, of all its commands
            return
        if not words or words[0] not in commands:
            raise ValueError(f"no command {' '.join(words[:1])}, expected one of {', '.join(commands)}")
        _check_click(commands[words[0]], words[1:], whole)
        return
    try:
        command.make_context(command.name, list(words))
    except Exception as error:
        kind = type(error).__name__
        if hasattr(error, "format_message") and (whole or kind != "MissingParameter"):
            raise ValueError(error.format_message()) from error
        if kind not in ("MissingParameter", "Exit"):  # the latter is of --help
            raise


def _check_module(name: str, words: list[str], whole: bool) -> None:
    module = importlib.import_module(name)
    if "ArgumentParser" not in Path(str(module.__file__)).read_text():
        program = typer.Typer(add_completion=False)
        program.command()(module.main)
        _check_click(typer.main.get_command(program), words, whole)
        return
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
        for action in parser._actions:
            action.required = action.required and whole
        parse(parser, arguments)
        raise Parsed

    def refused(_: argparse.ArgumentParser, message: str) -> None:
        raise ValueError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(argparse.ArgumentParser, "error", refused)
        with pytest.raises(Parsed):
            module.main()


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_in_blocks_can_be_given(guide: str) -> None:
    for words in in_blocks((ROOT / guide).read_text()):
        check(words)


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_in_the_running_text_can_be_given(guide: str) -> None:
    """They may leave out what a command needs besides."""
    for words in in_lines((ROOT / guide).read_text()):
        check(words, whole=False)


def test_every_command_of_the_guides_is_found() -> None:
    """As counted by plain search: nothing is passed over for how it is written."""
    for guide in GUIDES:
        lines = [line.partition("#")[0] for line in (ROOT / guide).read_text().splitlines() if line.startswith("    ")]
        named = [line for line in lines if re.search(r"(^|[ /])hdb |python -m (benchmarks|recipes)\.", line)]
        assert len(in_blocks((ROOT / guide).read_text())) == len(named)
    assert len(in_blocks((ROOT / "README.md").read_text())) >= 5
    assert len(in_lines((ROOT / "README.md").read_text())) >= 15


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (".venv/bin/hdb personalize a.jpg -o a.safetensors --shet a.png", "--shet"),
        ("hdb personalise a.jpg -o a.safetensors", "personalise"),
        ("hdb personalize a.jpg", "--output"),
        ("hdb generate a.safetensors --prompt p -o out/ --count many", "--count"),
        ("hdb study maker runs/1", "maker"),
        ("hdb study make runs/1 -o study/ --our x", "--our"),
        ("torchrun --no-python hdb train faces/ fitted/ -o network/ --preset huge", "huge"),
        ("python -m benchmarks.sd15 --count-all", "--count-all"),
        ("python -m benchmarks.scale", "counts"),
        ("python -m benchmarks.first_light --persons 100", "--persons"),
        ("python -m recipes.embedded --photographs a --cache b --only nothing", "nothing"),
    ],
)
def test_what_does_not_exist_is_refused(line: str, message: str) -> None:
    (words,) = in_blocks(f"    {line}    # a comment\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        check(words)
