"""The commands on the tiny base: what they leave, what they print where, and that they say what the library says."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperdreambooth.baselines.dreambooth import PriorConfig
from hyperdreambooth.baselines.methods import METHODS
from hyperdreambooth.cli import console, run, using
from hyperdreambooth.cli.console import Job
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.faces import to_picture
from hyperdreambooth.files import load_tensors
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import save_kohya
from hyperdreambooth.people import read_people
from hyperdreambooth.personalization import PHASES
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLE_SCENES, STYLES, caption
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View
from hyperdreambooth.progress import Progress


@dataclass
class Hdb:
    """The program on the tiny base."""

    base: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        """Run it; what it printed for programs and for people."""
        self.capsys.readouterr()
        got = run([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        assert got == status, err
        return out, err

    def json(self, *arguments: object) -> dict[str, Any]:
        """Run it with --json: the one object on standard output."""
        out, _ = self(*arguments, "--json")
        values: dict[str, Any] = json.loads(out)
        assert values["seconds"]["total"] > 0 and values["versions"]["torch"] == torch.__version__
        return values


@pytest.fixture
def hdb(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> Hdb:
    return Hdb(base_folder, capsys)


@pytest.fixture(scope="module")
def identities(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two identity files of the tiny base."""
    folder = tmp_path_factory.mktemp("people")
    booth = HyperDreamBooth.load(base_folder)
    files = folder / "alice.safetensors", folder / "bob.safetensors"
    for seed, file in enumerate(files):
        weights = 0.5 * torch.randn(booth.space.start(2).shape, generator=torch.Generator().manual_seed(seed))
        Identity(weights, booth.space.info, booth.fingerprint, booth.base.name, how={"steps": 7}).save(file, "fp32")
    return files


def test_personalize(hdb: Hdb, tmp_path: Path, portrait_file: Path) -> None:
    file, sheet = tmp_path / "a" / "alice.safetensors", tmp_path / "a" / "alice.png"
    settings = ("--base", hdb.base, "--steps", 2, "--noises", 3, "--relax", "lidb", "--rank", 2, "--dtype", "int8")
    got = hdb.json("personalize", portrait_file, "-o", file, *settings, "--seed", 4, "--sheet", sheet)
    person = Identity.open(file)
    assert (got["bytes"], got["sheet_bytes"]) == (file.stat().st_size, sheet.stat().st_size)
    assert (got["sites"], got["numbers"], got["ranks"]) == (person.sites, person.numbers, 2)
    assert (got["samples"], got["seed"]) == (2 * 3, 4)
    assert got["sheet_samples"] == (2 + 3) * 8 * 25  # of the prediction two answers a step, then three; eight prompts
    assert {*PHASES, "load", "save", "draw", "total"} == set(got["seconds"])
    assert got["seconds"]["total"] >= sum(got["seconds"].values()) / 2 - 0.01
    assert any("no hypernetwork" in note for note in got["notes"])
    assert person.how["seed"] == 4 and person.how["noises"] == 3
    with Image.open(sheet) as image:
        assert min(image.size) > 4 * 192


def test_personalize_is_what_the_library_does(hdb: Hdb, tmp_path: Path, portrait_file: Path) -> None:
    out, err = hdb(
        "personalize", portrait_file, "-o", tmp_path / "a.safetensors", "--base", hdb.base,
        "--steps", 1, "--relax", "lora", "--dtype", "fp32", "--hypernetwork", "none",
    )  # fmt: skip
    assert out == "" and "fine-tune" in err and "total" in err and "bytes" in err
    person = Identity.open(tmp_path / "a.safetensors")
    expected = HyperDreamBooth.load(hdb.base).personalize(portrait_file, steps=1, relax="lora")
    assert person.lora is not None and expected.lora is not None
    assert torch.equal(person.lora, expected.lora) and torch.equal(person.weights, expected.weights)


@pytest.mark.parametrize("method", ["lora-dreambooth", "dreambooth", "textual-inversion"])
def test_people_of_other_methods_are_made_inspected_and_drawn(
    hdb: Hdb, tmp_path: Path, portrait_file: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = PriorConfig(pictures=2, drawing=DrawConfig(steps=2, likeness=None))
    monkeypatch.setitem(METHODS, "dreambooth", replace(METHODS["dreambooth"], prior=few))
    file, sheet = tmp_path / "alice.safetensors", tmp_path / "alice.png"
    chosen = ("--method", method, "--steps", 2, "--base", hdb.base)
    got = hdb.json("personalize", portrait_file, "-o", file, *chosen, "--sheet", sheet)
    assert got["method"] == method and got["bytes"] == file.stat().st_size and sheet.is_file()
    assert got["samples"] == (4 if method == "dreambooth" else 2)  # a picture of the class beside each of the person
    facts = hdb.json("inspect", file)
    assert facts["how"]["method"] == method and facts["how"]["steps"] == 2 and facts["numbers"] == got["numbers"]
    drawn = hdb.json(
        "generate", file, "--prompt", "a [V] face", "-o", tmp_path / "out", "--base", hdb.base, "--steps", 2
    )
    assert drawn["count"] == 1
    if method != "lora-dreambooth":
        exported = ("export", file, "--format", "kohya", "-o", tmp_path / "b.safetensors", "--base", hdb.base)
        assert "in weights of their own" in hdb(*exported, status=2)[1]
    if method == "dreambooth":  # the class's pictures are drawn once for a base
        again = hdb.json("personalize", portrait_file, "-o", file, *chosen)
        assert not any("pictures of the class" in note for note in again["notes"])
        assert any("pictures of the class" in note for note in got["notes"])


def test_evaluate_and_report(hdb: Hdb, tmp_path: Path, quick_sampling: None) -> None:
    run, methods = tmp_path / "run", "hyperdreambooth,no-hyper,textual-inversion@2"
    command = ("evaluate", "portraits:15000-15002", "-o", run, "--base", hdb.base, "--methods", methods, "--people", 2)
    got = hdb.json(*command)
    assert (got["people"], got["made"]) == (3, 6)
    each = 8 + 3 + 2  # eight prompts, the plain one four times, two of nobody
    assert got["pictures"] == 6 * each == len(list((run / "pictures").rglob("*.png")))
    told = hdb.json("report", run)
    assert told["methods"] == 3 and told["bytes"] > 10_000
    text, page = ((run / "report" / name).read_text() for name in ("results.md", "results.html"))
    counted = "3 portraits, 8 prompts, 2 methods and 1 more points of curves, 78 pictures"
    for words in (counted, "chance 33.3%", "*0.655*"):
        assert words in text
    assert "textual-inversion@2" not in text and "5,000" not in text  # a point of a curve is no row of a table
    assert 'src="data:image/png' in page and '.png"' not in page and "<table>" in page
    assert {path.name for path in (run / "report/results").iterdir()} >= {"time.png", "bytes.png", "sheet-1.jpg"}


def test_evaluate_takes_the_photographs_that_are_named(
    hdb: Hdb, tmp_path: Path, portrait_file: Path, quick_sampling: None
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("ann.png", "bob.png", "cas.png"):
        (folder / name).write_bytes(portrait_file.read_bytes())
    (tmp_path / "list.txt").write_text("bob.png\nphotos/cas.png\nelsewhere/dan.png\n")
    command = ("evaluate", folder, "-o", tmp_path / "run", "--base", hdb.base, "--methods", "no-hyper@1")
    got = hdb.json(*command, "--only", tmp_path / "list.txt")
    assert got["people"] == 2 and (tmp_path / "run" / "references" / "bob.png").is_file()
    for listed, words in (("bob.png\nno body.png", "has no no body.png (1 of 2"), ("else/dan.png", "nobody of photos")):
        (tmp_path / "list.txt").write_text(listed)
        _, said = hdb(*command, "--only", tmp_path / "list.txt", "-o", tmp_path / "other", status=2)
        assert words in said


def test_generate_every_one_with_every_one(hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path]) -> None:
    prompts = ["a [V] face", "a [V] face in the snow"]
    flags = [flag for prompt in prompts for flag in ("--prompt", prompt)]
    settings = ("--base", hdb.base, "--count", 2, "--seed", 3, "--steps", 2, "--strength", 0.5)
    got = hdb.json("generate", *identities, *flags, "-o", tmp_path, *settings)
    assert got["count"] == 8 and got["samples"] == 8 * 2 * 3 and len(list(tmp_path.glob("*.png"))) == 8
    said = [(picture["identity"], picture["prompt"], picture["seed"]) for picture in got["pictures"]]
    assert said == [(str(file), prompt, seed) for file in identities for prompt in prompts for seed in (3, 4)]
    booth = HyperDreamBooth.load(hdb.base)
    (expected,) = booth.generate(booth.open(identities[1]), prompts[0], seed=4, steps=2, strength=0.5)
    with Image.open(got["pictures"][5]["file"]) as image:
        assert (to_picture(image) - to_picture(expected)).abs().max() <= 1.01 / 255


def test_the_unet_is_compiled_where_asked(
    hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path], portrait_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, common = list[object](), ("--base", hdb.base, "--steps", 1)
    monkeypatch.setattr("hyperdreambooth.pipeline.compile_unet", compiled.append)
    drawing = ("generate", identities[0], "--prompt", "a [V] face", "-o", tmp_path, *common)
    making = ("personalize", portrait_file, "-o", tmp_path / "a.safetensors", "--hypernetwork", "none", *common)
    for command in (drawing, making):
        hdb(*command)
        assert not compiled
        hdb(*command, "--compile")
        assert len(compiled) == 1
        compiled.clear()
        assert "choose one" in hdb(*command, "--compile", "--low-memory", "checkpointing", status=2)[1]


def test_generate_by_another_sampler(hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path]) -> None:
    command = ("generate", identities[0], "--prompt", "a [V] face", "--base", hdb.base, "--steps", 2)
    hdb(*command, "--sampler", "euler", "-o", tmp_path)
    booths = [HyperDreamBooth.load(hdb.base, sampler=name) for name in ("euler", "own")]
    theirs, own = (to_picture(booth.generate(booth.open(identities[0]), "a [V] face", steps=2)[0]) for booth in booths)
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        assert (to_picture(image) - theirs).abs().max() <= 1.01 / 255 < (theirs - own).abs().max()
    _, err = hdb(*command, "--sampler", "plms", "-o", tmp_path, status=2)
    assert "plms" in err and "dpm++" in err


def test_generate_as_exported(hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path]) -> None:
    settings = ("--prompt", "a [V] face", "--base", hdb.base, "--steps", 2, "--guidance", 2)
    got = hdb.json("generate", identities[0], *settings, "--as-exported", "-o", tmp_path / "a")
    assert got["samples"] == 2 * 2
    assert hdb.json("generate", identities[0], *settings, "--likeness", 4, "-o", tmp_path / "b")["samples"] == 2 * 3
    booth = HyperDreamBooth.load(hdb.base)
    alice = booth.open(identities[0])
    expected = [booth.generate(alice, "a [V] face", steps=2, guidance=2.0, likeness=l)[0] for l in (None, 4.0)]  # noqa: E741
    for folder, picture in zip(("a", "b"), expected, strict=True):
        (file,) = (tmp_path / folder).glob("*.png")
        with Image.open(file) as image:
            assert (to_picture(image) - to_picture(picture)).abs().max() <= 1.01 / 255
    assert (to_picture(expected[0]) - to_picture(expected[1])).abs().max() > 2 / 255


def test_generate_pairs(hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path]) -> None:
    prompts = ("--prompt", "a [V] face", "--prompt", "a [V] zebra")
    got = hdb.json("generate", *identities, *prompts, "--pairs", "-o", tmp_path, "--base", hdb.base, "--steps", 1)
    assert [(p["identity"], p["prompt"]) for p in got["pictures"]] == [
        (str(identities[0]), "a [V] face"),
        (str(identities[1]), "a [V] zebra"),
    ]
    assert ["zebra" in note for note in got["notes"]] == [True]
    _, err = hdb("generate", *identities, *prompts[:2], "--pairs", "-o", tmp_path, status=2)
    assert "2 identities and 1 prompts" in err


def test_generates_help_lists_what_the_base_knows(hdb: Hdb) -> None:
    text = " ".join((using.generate.__doc__ or "").replace("|", " ").split())
    for scene in (*STYLE_SCENES, *EDIT_SCENES):
        words = scene.context or (scene.edit if scene.edit != "old" else None) or caption(scene, "[V] face")
        assert words.removesuffix(" of a [V] face") in text, words
    assert "identities and prompts" in " ".join(hdb("generate", "--help")[0].lower().split())


def test_inspect(hdb: Hdb, identities: tuple[Path, Path]) -> None:
    got = hdb.json("inspect", identities[0])
    person = Identity.open(identities[0])
    assert (got["numbers"], got["ranks"], got["fingerprint"]) == (person.numbers, 2, person.base)
    assert got["how"] == {"steps": 7} and got["space"]["a"] == person.space.a
    out, err = hdb("inspect", identities[0])
    assert out == "" and "how steps" in err and f"{person.numbers:,}" in err


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_export(hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path], layout: str) -> None:
    output = tmp_path / ("folder" if layout == "peft" else "alice.safetensors")
    foreign = tmp_path / "folder" / "adapter_model.bin"  # of somebody else, not to be counted
    foreign.parent.mkdir()
    foreign.write_bytes(b"mine")
    got = hdb.json("export", identities[0], "--format", layout, "-o", output, "--base", hdb.base)
    files = [output] if output.is_file() else [file for file in output.rglob("*") if file.is_file() and file != foreign]
    assert got["bytes"] == sum(file.stat().st_size for file in files) > 0
    if layout == "kohya":
        booth = HyperDreamBooth.load(hdb.base)
        save_kohya(tmp_path / "expected.safetensors", booth.space, booth.open(identities[0]).weights)
        exported, expected = load_tensors(output)[0], load_tensors(tmp_path / "expected.safetensors")[0]
        assert exported.keys() == expected.keys() and all(torch.equal(exported[k], expected[k]) for k in expected)


def test_mix(hdb: Hdb, tmp_path: Path, identities: tuple[Path, Path]) -> None:
    booth = HyperDreamBooth.load(hdb.base)
    first, second = map(booth.open, identities)
    output = tmp_path / "between.safetensors"
    for weight, like in ((0, first), (1, second)):
        hdb("mix", *identities, "--weight", weight, "-o", output, "--base", hdb.base, "--dtype", "fp32")
        assert booth.space.distance(booth.open(output).weights, like.weights) < 1e-4
    got = hdb.json("mix", *identities, "-o", output, "--base", hdb.base)
    between = booth.open(output)
    assert got["bytes"] == output.stat().st_size and between.ranks == 2
    assert (
        0 < booth.space.distance(between.weights, first.weights) < booth.space.distance(second.weights, first.weights)
    )


def test_portraits(hdb: Hdb, tmp_path: Path) -> None:
    got = hdb.json("portraits", "--seed", 7, "--count", 2, "--views", 2, "--size", 32, "-o", tmp_path)
    people = json.loads((tmp_path / "people.json").read_text())
    assert [person["seed"] for person in people] == [7, 8] and got["pictures"] == 4
    assert got["bytes"] == sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert read_people(str(tmp_path), 32, 4, lambda _: None).pictures.shape[:2] == (2, 2)  # two people of two views
    assert people[1]["attributes"]["beard"] == Person(8).choice("beard")
    for person in people:
        for number, entry in enumerate(person["pictures"]):
            view = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items() if name != "file"}
            expected = render([Person(person["seed"])], [View(**view)], 32)[0]
            with Image.open(tmp_path / entry["file"]) as image:
                assert (to_picture(image) - expected).abs().max() <= 1.01 / 255
            assert (view["yaw"] == 0) == (number == 0)


def test_people_to_a_hypernetwork_to_a_person(hdb: Hdb, tmp_path: Path, portrait_file: Path) -> None:
    weights, folder, alice = tmp_path / "weights", tmp_path / "trained", tmp_path / "alice.safetensors"
    people, base = "portraits:0-4", ("--base", hdb.base)
    got = hdb.json("preoptimize", people, "-o", weights, *base, "--views", 2, "--steps", 1)
    assert (got["people"], got["samples"]) == (5, 5 * 4)
    assert hdb.json("preoptimize", people, "-o", weights, *base, "--views", 2, "--steps", 1)["samples"] == 0  # all done
    training = (
        "train",
        people,
        weights,
        "-o",
        folder,
        *base,
        "--preset",
        "tiny",
        "--views",
        2,
        "--steps",
        1,
        "--styles",
    )
    got = hdb.json(*training, "--dry-run")
    assert got["training"]["both"]["steps"] == 1 and got["network"]["rounds"] >= 1 and not folder.exists()
    cost = got["cost"]
    a_person = {
        name: cost["phases"][name]["flops_per_step"] / got["training"][f"{name}_batch"] for name in ("both", "weights")
    }
    assert a_person["both"] > a_person["weights"] > 0
    got = hdb.json(*training)
    assert got["parameters"] == cost["parameters"]
    assert got["bytes"] == (folder / "hypernetwork.safetensors").stat().st_size
    prompts = json.loads((folder / "plan.json").read_text())["training people prompts"]
    assert len(prompts) == len(STYLES) - 1 and "a watercolor of a [V] face" in prompts
    got = hdb.json("personalize", portrait_file, "-o", alice, *base, "--steps", 0, "--hypernetwork", folder)
    assert got["ranks"] == 1 and got["samples"] == 0 and got["notes"] == []
    again = tmp_path / "again"
    hdb.json(*training, "-o", again, "--encoder", folder, "--seed", 1)
    first, second = (load_tensors(path / "hypernetwork.safetensors")[0] for path in (folder, again))
    assert not torch.equal(first["position"], second["position"])
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items() if name.startswith("encoder."))
    _, err = hdb(*training, "-o", tmp_path / "other", "--encoder", "embedded", status=2)
    assert "a network of other sizes" in err
    _, err = hdb("train", "portraits:0-1", weights, "-o", folder, *base, status=2)
    assert "3 people whom PEOPLE has not" in err
    plan = weights / "plan.json"
    plan.write_text(plan.read_text().replace(HyperDreamBooth.load(hdb.base).fingerprint, "0" * 16))
    _, err = hdb("train", people, weights, "-o", folder, *base, status=2)
    assert "was fitted on base 00000000" in err


def test_people_from_photographs(hdb: Hdb, tmp_path: Path, portrait_file: Path) -> None:
    folder = tmp_path / "people"
    for name in ("ann/1.png", "ann/2.png", "bea/1.png", "carl.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(portrait_file.read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    got = hdb.json("preoptimize", folder, "-o", tmp_path / "weights", "--base", hdb.base, "--steps", 1)
    assert got["people"] == 3 and ["broken.png" in note for note in got["notes"]] == [True, False]
    assert got["notes"][-1] == "1 of 5 pictures were left out"
    plan = json.loads((tmp_path / "weights" / "plan.json").read_text())
    assert plan["names"] == ["ann", "bea", "carl"]


def test_split_and_preoptimize_those_of_a_list(hdb: Hdb, tmp_path: Path) -> None:
    got = hdb.json("split", "portraits:0-5", "-o", tmp_path, "--tuning", 1, "--reporting", 2)
    assert (got["training"], got["tuning"], got["reporting"]) == (3, 1, 2)
    folder = tmp_path / "weights"
    listed = ("--only", tmp_path / "training.txt", "--base", hdb.base, "--views", 1, "--steps", 1)
    assert hdb.json("preoptimize", "portraits:0-5", "-o", folder, *listed)["people"] == 3
    kept = json.loads((folder / "plan.json").read_text())["names"]
    assert kept == sorted((tmp_path / "training.txt").read_text().split())
    (tmp_path / "reporting.txt").write_text(f"{kept[0]}\n")
    _, err = hdb("preoptimize", "portraits:0-5", "-o", folder, *listed, status=2)
    assert "whom is learnt from must not be measured on" in err


def test_demo(hdb: Hdb, tmp_path: Path, portrait_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperdreambooth.base.loading.BASE", hdb.base)
    monkeypatch.setattr(using, "DEMO_PHOTO", portrait_file)
    got = hdb.json("demo", "-o", tmp_path / "demo")
    assert {file.name for file in (tmp_path / "demo").iterdir()} == {"alice.safetensors", "alice.png"}
    assert got["seed"] == 0 and got["samples"] == 80


@pytest.mark.parametrize("as_json", [True, False])
def test_a_process_that_is_not_the_main_one_says_nothing(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with Job(as_json, quiet) as job:
            job.note("something")
            job.finish(file="here [final].png", prompt="[/y]")  # no markup
        said = "".join(capsys.readouterr())
        assert all(text in said for text in ("something", "here [final].png", "[/y]")) is not quiet
        assert (said == "") is quiet


def test_without_a_terminal_a_line_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, expected in ((60.0, []), (0.0, ["fit: 1 of 4 loss 0.5000", "fit: 2 of 4", "read: 3"])):
        monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", seconds)
        with Job() as job:
            for now in (Progress("fit", 1, 4, 0.5), Progress("fit", 2, 4), Progress("read", 3, 0)):
                job.report(now)
        assert capsys.readouterr().err.splitlines() == expected
