"""The house rules that no linter knows: which way imports point, how long a file is, what starting costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hyperdreambooth"
README = ROOT / "README.md"
LONGEST_FILE = 400
HEAVY = {"torch", "diffusers", "transformers", "cv2", "numpy", "PIL", "peft"}

# From low to high: a module imports from its own part and from parts of lower rows, never sideways or up.
LAYERS = (
    ("embedded", "errors"),
    ("files", "hub", "progress"),
    ("cluster",),
    ("folders", "sheet"),
    ("lidb",),
    ("base",),
    ("faces", "portraits"),
    ("fitting",),
    ("identity",),  # from lidb alone: see below
    ("tuned", "kept"),
    ("hypernetwork", "drawing", "photographs"),
    ("people", "personalization"),
    ("pipeline",),
    ("baselines", "exchange", "footprint"),
    ("evaluation",),
    ("serving", "showcase"),
    ("cli",),
)
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below the package, "" being the package itself."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside functions, as dotted names below the package.

    Only the package itself, which lends its version to everyone, is left out.
    """
    found, known = set(), modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = PACKAGE.parent if not node.level else path.parents[node.level - 1]
            source = ".".join([*folder.relative_to(PACKAGE.parent).parts, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, below = name.partition(".")
            if top == "hyperdreambooth":
                found.add(below if below in known else below.rpartition(".")[0])
    return found - {""}


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_imports_point_down(name: str) -> None:
    part = name.split(".")[0]
    if part == "embedded":  # data alone
        assert not imported(modules()[name])
        return
    assert part in RANK, f"{part} stands in no layer: give it a row in LAYERS"
    for target in imported(modules()[name]) - {name}:
        other = target.split(".")[0]
        assert other == part or RANK[other] < RANK[part], f"{name} imports {target}, which is not below it"


def test_no_import_cycles() -> None:
    graph = {name: imported(path) - {name} for name, path in modules().items()}
    done: set[str] = set()
    while ready := {name for name, targets in graph.items() if name not in done and targets <= done}:
        done |= ready
    assert not (left := sorted(graph.keys() - done)), f"modules in a cycle, or above one: {left}"


def test_identity_knows_lidb_alone() -> None:
    targets = {name.split(".")[0] for name in imported(PACKAGE / "identity.py")}
    assert targets <= {"errors", "files", "lidb"}


@pytest.mark.parametrize("folder", ["src", "tests", "recipes", "benchmarks", "examples"])
def test_no_file_is_longer_than_a_reader_can_hold(folder: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {str(path): length for path, length in lengths.items() if length > LONGEST_FILE}


@pytest.mark.parametrize("module", ["hyperdreambooth", "hyperdreambooth.errors", "hyperdreambooth.files"])
def test_nothing_heavy_is_imported_early(module: str) -> None:
    assert not HEAVY & loaded_by(f"import {module}")


def test_help_is_instant() -> None:
    assert not HEAVY & loaded_by("from hyperdreambooth.cli import main; main()", "--help")


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Top-level modules in memory when a fresh interpreter that ran `code` with these arguments exits well."""
    code = "import atexit, sys\natexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n" + code
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.rpartition("LOADED")[2].split()}


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every python block, one after the other in one namespace, in an empty folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert blocks, "README.md has no python block"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
