"""A scored run as pages to read: one of Markdown with its pictures beside it, and one of HTML that holds everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation import costs, tables
from hyperdreambooth.evaluation.aims import aims, quick_set
from hyperdreambooth.evaluation.compared import where_known
from hyperdreambooth.evaluation.curves import curves, named
from hyperdreambooth.evaluation.drawn import Drawn
from hyperdreambooth.evaluation.figures import Sheet, sheets
from hyperdreambooth.evaluation.page import html_page, plain
from hyperdreambooth.evaluation.plots import looks_of, plot_costs
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.scores import BASE_METHOD, MEASURES, TRUE, Scores, Scoring
from hyperdreambooth.evaluation.study_tables import Answered, study_tables
from hyperdreambooth.evaluation.subjects import are_portraits
from hyperdreambooth.faces.mask import BACKGROUND
from hyperdreambooth.files import write_bytes
from hyperdreambooth.sheet import save_jpeg

MARKDOWN, HTML = "results.md", "results.html"
PICTURES = "results"  # the folder of the pictures that the page of Markdown shows
_LIBRARIES = {"matplotlib": "matplotlib", "markdown-it-py": "markdown_it"}  # an extra: name and module
_STAND_INS = (
    "The judges are small networks in the places of the paper's: a face recogniser that has learnt from true pictures"
    " in all styles, for VGGFace2's; a self-supervised image encoder, for DINO ViT-S/16; a small model of images and "
    "texts, for CLIP. They speak of the embedded base's two worlds alone."
)
_PRETRAINED = (
    "The judges are VGGFace2's Inception-ResNet, DINO ViT-S/16 and CLIP, as in the paper. Prompt recognised and "
    "attribute error are by small networks that know the embedded base's two worlds alone: of another base they say "
    "nothing."
)
_STYLISED = "Face recognition is out of its domain on stylised pictures, which is why the paper asked people too"
_STYLES_LEARNT = "; the recogniser here has learnt from true pictures in all styles"
_LIKE = {"dino": "DINO-like", "clip_i": "CLIP-I-like", "clip_t": "CLIP-T-like"}  # how stand-ins are called
_CAVEAT = (
    "The paper's figures are second-hand, of Stable Diffusion and CelebA-HQ, by other judges: only the order of "
    "methods can be compared. Intervals are 95 %, bootstrapped over people (expanded percentiles, of five people or "
    "more), each drawn from noises of their own; everybody is fitted once, by one sequence of noises. "
    f"Fits by all methods, the others' too, weigh head and hair 1 and the background {BACKGROUND:g}, and spread their "
    "timesteps evenly: plain training scripts do neither. Pictures by all methods are drawn with as much likeness, but "
    "those of predictions alone with more: plain pipelines have no such guidance."
)
_REACHED = (
    "No worse: the interval of the difference does not lie below 0. Better: it lies above. Equal likeness: as much "
    "Face Rec. as ours has at the end. The quick set: fits and drawing, without loading and judging."
)
_SECONDS = (
    "Seconds are of one person made alone, unless it says that several were made at once and shared them; only those "
    "that were shared by as many, on one kind of machine, are compared"
)
_BEFOREHAND = (
    "What was made beforehand, once for a base, is in none of them: the hypernetwork of ours, what E4T has learnt "
    "behind the same network's eyes (the cards beside those files say how long it took), and the class's pictures that "
    "DreamBooth draws for its prior."
)
_NOMINAL = (
    "The paper counts one noise a step for everybody. Ours, which the tables above speak of, takes two; one-noise is "
    "ours with one, encoding and prediction included; finding the face is in nobody's."
)
_PHOTOGRAPHS = (
    "Of photographs there is one of each person, the one that was fitted: identified compares with that photograph "
    "under the style's filter, so that a copy passes for likeness, and true pictures are the photograph mirrored, cut"
    " and lit otherwise. Nobody knows how it looks in another domain or context or after an edit: such prompts are "
    "left out of identified, and of prompt recognised where they ask for no style. Likeness in them is to the "
    "photograph as it is, so that aims, speed at equal likeness and plots are of the styles alone."
)


@dataclass(frozen=True)
class Part:
    """One run of a report.

    Attributes:
        scoring: what judged it.
        scores: of all its methods and of true pictures.
        prefix: of the names of its pictures' files.
    """

    scoring: Scoring
    scores: Sequence[Scores]
    prefix: str = ""

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Its galleries."""
        return list(sheets(self.scoring))


def check_report(run: RunFolder, photographs: bool = False) -> None:
    """Find what would keep a report from being written before anything is judged.

    Args:
        run: its folder.
        photographs: whether it has to be a run of photographs.

    Raises:
        UserError: a library is missing, the folder is no sound run, it is of synthetic people where photographs are
            expected, or ours has drawn nobody whole in any prompt, with which everything is compared.
    """
    missing = [name for name, module in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"a report needs {' and '.join(missing)}, not there: pip install 'hyperdreambooth[report]'")
    drawn = Drawn(run)
    if OURS not in (methods := drawn.methods):
        raise UserError(
            f"{run.path} holds {', '.join(methods) or 'no whole set of pictures'}, expected {OURS} among them, with "
            "which all are compared: draw it too"
        )
    if photographs and are_portraits(drawn.names):
        raise UserError(
            f"{run.path} holds synthetic people ({drawn.names[0]}, ...), expected photographs: give it as RUN, and a "
            "run of photographs beside it"
        )


def write_report(
    parts: Sequence[Part],
    folder: Path,
    title: str = "Results",
    studies: Sequence[Answered] = (),
    quick: RunFolder | None = None,
) -> int:
    """Write both pages and the folder of their pictures; returns the bytes of all of them.

    Args:
        parts: the runs, each under a heading of its own where there are several.
        folder: what is written into.
        title: above everything.
        studies: user studies of them.
        quick: the quick set by ours as it was timed, where none of the parts is that.

    Raises:
        UserError: as `check_report`. DiskFull, WorkError: as files do.
    """
    written = 0
    for part in parts:
        check_report(part.scoring.run)
        written += _write_pictures(part, folder / PICTURES)
    text = "\n".join(_lines(parts, title, studies, quick)) + "\n"
    page = html_page(text, folder, title)
    for name, content in ((MARKDOWN, text), (HTML, page)):
        written += write_bytes(folder / name, content.encode())
    return written


def _write_pictures(part: Part, folder: Path) -> int:
    """Plots and sheets of one run; their bytes."""
    scores = where_known({one.method: one for one in part.scores})
    single = {name: [one] for name, one in named(scores).items() if name not in (TRUE, BASE_METHOD)}
    truth = scores.get(TRUE)
    lines = curves(scores)
    looks = looks_of(dict.fromkeys([*lines, *single]))
    time, kept = (folder / f"{part.prefix}{name}.png" for name in ("time", "bytes"))
    heads = _heads(part)
    written = plot_costs(time, lines, truth, "seconds", "seconds per person", looks, heads)
    written += plot_costs(kept, single, truth, "bytes", "bytes per person", looks, heads)
    return written + sum(save_jpeg(folder / f"{part.prefix}{one.file}", one.image) for one in part.sheets)


def _heads(part: Part) -> dict[str, str]:
    """How the measures are called, by who measured."""
    return {**MEASURES, **(_LIKE if part.scoring.panel.encoders.stand_ins else {})}


def _lines(parts: Sequence[Part], title: str, studies: Sequence[Answered], quick: RunFolder | None) -> Iterator[str]:
    yield from (f"# {plain(title)}", "")
    for part in parts:
        lines = _lines_of(part, part.scoring.drawn if quick is None else Drawn(quick))
        if len(parts) == 1:
            yield from lines
        else:  # each under its own heading, with all others one level below
            yield from (f"## {part.scoring.subjects.world.capitalize()}", "")
            yield from (f"#{line}" if line.startswith("#") else line for line in lines)
        yield ""
    if studies:
        yield from ("## User studies", "", *study_tables(studies))


def _lines_of(part: Part, quick: Drawn) -> Iterator[str]:
    """Everything on one run, with the quick set's time."""
    points = {one.method: one for one in part.scores}
    scores, known = named(points), where_known(points)
    yield from _opening(part.scoring)
    heads = _heads(part)
    yield from ("", *tables.paper_tables(scores, heads), *tables.all_together(scores, heads), _CAVEAT, "")
    yield from (_STYLISED + (_STYLES_LEARNT if part.scoring.panel.encoders.stand_ins else "") + ".", "")
    yield from ("## What was aimed at", "", *aims(known, heads, quick_set(quick)), "")
    yield from (_REACHED, "")
    yield from ("## Ours against each, person by person", "", *tables.differences(scores, heads), "")
    yield (
        "Over the people and prompts that both have. Bold where the interval does not cross 0; the last three columns "
        "in points of 100."
    )
    machines = ", ".join(sorted({one.machine for one in scores.values() if one.machine}))
    where = f"; here: {machines}{_timed(part.scoring, scores)}." if machines else "."
    yield from ("", "## What it takes", "", *costs.costs(scores), "", _SECONDS + where, "", _BEFOREHAND, "")
    if nominal := list(costs.nominal(scores)):
        yield from (*nominal, "", _NOMINAL, "")
    yield from (*costs.at_equal_likeness(known), "")
    pictures = f"{PICTURES}/{part.prefix}"  # a folder, and how its files begin
    time, kept = f"{pictures}time.png", f"{pictures}bytes.png"
    yield from (f"![Likeness and prompt against seconds]({time})", "", f"![The same against bytes]({kept})", "")
    yield from ("## What the paper does not measure", "", *tables.beyond(scores), "")
    yield (
        "Diversity: 1 less the likeness (self-supervised) of pictures of one person in the plain prompt; a copied "
        "photograph is near 0. Pose and framing: 1 less the structural similarity (SSIM, grey) of the same pictures; "
        "the photograph itself: their structural similarity with it, where true pictures from other views say how much "
        "is the person's. Face of nobody: Face Rec. of the pictures for a prompt that names nobody; where it is "
        "high, the base has become the person; nobody worn, where it was drawn, is what the bare base gets. Attribute "
        "error: 0 all read back, 1 no better than a guess."
    )
    yield from ("", "## Pictures", "")
    for sheet in part.sheets:
        yield from (f"![{plain(sheet.title)}]({pictures}{sheet.file})", "")
    yield "The first people and prompts of the run, the first picture of each: not chosen."


def _opening(scoring: Scoring) -> Iterator[str]:
    """What was drawn, what the columns mean, and what is not there."""
    plan, people, prompts = scoring.run.plan, len(scoring.names), len(scoring.prompts)
    pictures, points = len(scoring.run.pictures()), sum("@" in name for name in scoring.methods)
    methods = f"{len(scoring.methods) - points} methods" + (f" and {points} more points of curves" if points else "")
    yield (
        f"{_drawn(scoring)}, {prompts} prompts, {methods}, {pictures:,} pictures; base {plan['base']}, "
        f"hypernetwork {plan['hypernetwork']}. Identified: the share of pictures whose nearest of the {people} people, "
        f"as they truly look in that prompt, is the right one (chance {1 / people:.1%}). Prompt recognised: a "
        "classifier of scenes reads all that was asked; it is surer of styles than of domains, contexts and edits. "
        f"Prompt ranked first: of the {prompts} prompts, the picture's own is the nearest to it (CLIP-T; "
        f"chance {1 / prompts:.1%}). All prompts weigh alike."
    )
    notes = [_STAND_INS if scoring.panel.encoders.stand_ins else _PRETRAINED]
    notes += [*([_PHOTOGRAPHS] if scoring.subjects.seeds is None else []), *_missing(scoring.drawn)]
    yield from (line for note in notes for line in ("", note))


def _drawn(scoring: Scoring) -> str:
    """How many people were drawn, of how many among whom they are told apart: "32 of 100 portraits"."""
    there, world = len(scoring.names), scoring.subjects.world
    most = max(len({one.person for one in scoring.drawn.whole(name)}) for name in scoring.methods)
    return f"{there} {world}" if most == there else f"{most} of {there} {world}"


def _timed(scoring: Scoring, scores: Mapping[str, Scores]) -> str:
    """Of how many people the seconds are means that were taken alone, apart from the run."""
    counts = sorted({one.people for name, one in scoring.alone.items() if name in scores})
    return f", means of {' to '.join(str(one) for one in (counts[0], *counts[1:][-1:]))} people" if counts else ""


def _missing(drawn: Drawn) -> Iterator[str]:
    """One line on what is not there of which method, if anything."""
    said = []
    for method in drawn.begun:
        lacking, begun = drawn.incomplete(method)
        failed = len(drawn.failed.get(method, ()))
        said += [f"{method} lacks pictures of {lacking} of {begun} people"] if lacking else []
        said += [f"{method} could not make or draw {failed}"] if failed else []
    if said:
        yield f"Not complete, and scored as far as it goes: {'; '.join(said)}."
