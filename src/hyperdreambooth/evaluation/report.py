"""A scored run as pages to read: one of Markdown with its pictures beside it, and one of HTML that holds everything."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation import tables
from hyperdreambooth.evaluation.drawn import Drawn
from hyperdreambooth.evaluation.plots import plot_costs
from hyperdreambooth.evaluation.prompts import NOBODY
from hyperdreambooth.evaluation.records import PictureRecord, RunFolder
from hyperdreambooth.evaluation.scores import Scores, Scoring
from hyperdreambooth.faces import read_picture
from hyperdreambooth.files import write_bytes
from hyperdreambooth.sheet import contact_sheet, save_jpeg, to_image

MARKDOWN, HTML = "results.md", "results.html"
_PEOPLE, _PROMPTS, _METHODS = 2, 5, 7  # of the sheets, at most, as in the paper's Figure 7
_FIRST = (OURS, "dreambooth", "textual-inversion", "e4t", "only-hyper", "no-hyper")  # of the sheets, if they are there
_LIBRARIES = {"matplotlib": "matplotlib", "markdown-it-py": "markdown_it"}  # an extra: name and module
_KINDS = {"png": "png", "jpg": "jpeg"}
_CAVEAT = (
    "Face recognition has learnt from true pictures in all styles here; that of photographs at full size is out of its "
    "domain on stylised ones, which is why the paper asked people too. The paper's figures are second-hand, of Stable "
    "Diffusion and CelebA-HQ: only the order of methods can be compared. Intervals are 95 %, bootstrapped over people."
)
_SECONDS = (
    "Seconds are of one person made alone, unless it says that several were made at once and shared them; only those "
    "that were shared by as many are compared."
)
_PHOTOGRAPHS = (
    "Of photographs nobody knows how they look in another domain or context or after an edit: prompt recognised leaves "
    "prompts without a style out, and true pictures are of styles alone."
)
_STYLE = """
:root { color-scheme: light dark; --ink: #26262a; --paper: #faf9f6; --pale: #807f7c; --line: #e2e0da; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae4; --paper: #1b1b1e; --pale: #98968f; --line: #38383c; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 2rem; letter-spacing: -0.02em; } h2 { margin-top: 3rem; } h3 { margin-top: 2rem; font-size: 1.05rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem; }
th, td { text-align: left; white-space: nowrap; padding: 0.35rem 0.9rem 0.35rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--pale); font-weight: 500; } em { color: var(--pale); font-style: normal; font-size: 0.92em; }
td { vertical-align: top; line-height: 1.35; }
img { max-width: 100%; border-radius: 6px; } p { max-width: 60rem; }
"""


def check_report(run: RunFolder) -> None:
    """Find what would keep a report from being written before anything is judged.

    Raises:
        UserError: a library is missing, the folder is no sound run, or ours has drawn nobody whole in any prompt, with
            which everything is compared.
    """
    missing = [name for name, module in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"a report needs {' and '.join(missing)}, not there: pip install 'hyperdreambooth[report]'")
    if OURS not in (methods := Drawn(run).methods):
        raise UserError(
            f"{run.path} holds {', '.join(methods) or 'no whole set of pictures'}, expected {OURS} among them, with "
            "which all are compared: draw it too"
        )


def write_report(scoring: Scoring, scores: Sequence[Scores], folder: Path, title: str = "Results") -> int:
    """Write both pages and their pictures; returns the bytes of all of them.

    Raises:
        UserError: as `check_report`. DiskFull, WorkError: as files do.
    """
    check_report(scoring.run)
    by_name = {one.method: one for one in scores}
    written = plot_costs(folder / "time.png", by_name, "seconds", "seconds per person")
    written += plot_costs(folder / "bytes.png", by_name, "bytes", "bytes per person")
    sheets = dict(_sheets(scoring))
    for number, sheet in enumerate(sheets.values(), start=1):
        written += save_jpeg(folder / _sheet_file(number), sheet)
    text = "\n".join(_lines(scoring, by_name, title, list(sheets))) + "\n"
    page = _page(text, folder, title)
    for name, content in ((MARKDOWN, text), (HTML, page)):
        written += write_bytes(folder / name, content.encode())
    return written


def _sheet_file(number: int) -> str:
    return f"sheet-{number}.jpg"


def _plain(text: str) -> str:
    """Any text as one line of Markdown that reads as it is."""
    return re.sub(r"([\\`*_\[\]<>&])", r"\\\1", " ".join(text.split()))


def _lines(scoring: Scoring, scores: Mapping[str, Scores], title: str, sheets: Sequence[str]) -> Iterator[str]:
    yield from (f"# {_plain(title)}", "", *_opening(scoring))
    yield from ("", *tables.paper_tables(scores), _CAVEAT, "")
    yield from ("## Ours against each, person by person", "", *tables.differences(scores), "")
    yield (
        "Over the people and prompts that both have. Bold where the interval does not cross 0; the last three columns "
        "in points of 100."
    )
    yield from ("", "## What it takes", "", *tables.costs(scores), "", _SECONDS, "")
    yield from (*tables.at_equal_likeness(scores), "")
    yield from ("![Likeness and prompt against seconds](time.png)", "", "![The same against bytes](bytes.png)", "")
    yield from ("## What the paper does not measure", "", *tables.beyond(scores), "")
    yield (
        "Diversity: 1 less the likeness (self-supervised) of pictures of one person in the plain prompt; a copied "
        "photograph is near 0. Face of nobody: Face Rec. of the pictures for a prompt that names nobody; where it is "
        "high, the base has become the person; nobody worn, where it was drawn, is what the bare base gets. Attribute "
        "error: 0 all read back, 1 no better than a guess."
    )
    yield from ("", "## Pictures", "")
    for number, name in enumerate(sheets, start=1):
        yield from (f"![{_plain(name)}]({_sheet_file(number)})", "")
    yield "The first people and prompts of the run, the first picture of each: not chosen."


def _opening(scoring: Scoring) -> Iterator[str]:
    """What was drawn, what the columns mean, and what is not there."""
    plan, people, prompts = scoring.run.plan, len(scoring.names), len(scoring.prompts)
    pictures = len(scoring.run.pictures())
    yield (
        f"{people} {scoring.subjects.world}, {prompts} prompts, {len(scoring.methods)} methods, {pictures:,} pictures; "
        f"base {plan['base']}, hypernetwork {plan['hypernetwork']}. Identified: the share of pictures whose nearest of "
        f"the {people} people, as they truly look in that prompt, is the right one (chance {1 / people:.1%}). Prompt "
        "recognised: a classifier of scenes reads all that was asked; it is surer of styles than of domains, contexts "
        f"and edits. Prompt ranked first: of the {prompts} prompts, the picture's own is the nearest to it (CLIP-T; "
        f"chance {1 / prompts:.1%}). All prompts weigh alike."
    )
    notes = [*([_PHOTOGRAPHS] if scoring.subjects.seeds is None else []), *_missing(scoring.drawn)]
    yield from (line for note in notes for line in ("", note))


def _missing(drawn: Drawn) -> Iterator[str]:
    """One line on what is not there of which method, if anything."""
    said = []
    for method in drawn.begun:
        lacking, begun = drawn.incomplete(method)
        failed = len(drawn.failed.get(method, ()))
        said += [f"{method} lacks pictures of {lacking} of {begun} people"] if lacking else []
        said += [f"{method} could not make {failed}"] if failed else []
    if said:
        yield f"Not complete, and scored as far as it goes: {'; '.join(said)}."


def _sheets(scoring: Scoring) -> Iterator[tuple[str, Image.Image]]:
    """One for each of the first people, by name: rows are methods, columns are prompts."""
    prompts = [prompt for prompt, _, _ in scoring.run.plan["prompts"] if prompt != NOBODY][:_PROMPTS]
    first: dict[tuple[str, str, str], PictureRecord] = {}
    for one in scoring.run.pictures():
        first.setdefault((one.method, one.person, one.prompt), one)
    for person in scoring.names[:_PEOPLE]:
        rows = dict[str, list[Image.Image]]()
        for method in sorted(scoring.methods, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
            there = [first.get((method, person, prompt)) for prompt in prompts]
            if "@" not in method and len(rows) < _METHODS and all(there):
                rows[method] = [to_image(read_picture(scoring.run.path / one.file)) for one in there if one is not None]
        if rows:
            reference = to_image(read_picture(scoring.run.reference(person)))
            yield person, contact_sheet(prompts, rows, reference=reference, captions=[person], across=len(prompts))


def _page(text: str, folder: Path, title: str) -> str:
    """The Markdown as one page of HTML, its pictures inside."""
    from markdown_it import MarkdownIt  # an extra

    body = MarkdownIt("commonmark").enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def inside(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/{_KINDS[match[2]]};base64,{data}"'

    body = re.sub(r'src="([^":]+\.(png|jpg))"', inside, body)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"
