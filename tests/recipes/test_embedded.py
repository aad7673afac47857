from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base, fingerprint_of
from hyperdreambooth.baselines.methods import METHODS, LiDB
from hyperdreambooth.embedded import E4T_NETWORK, FACE_VERIFIER, FOLDER, HYPERNETWORK, INDEPENDENT_NETWORK
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.judges import AttributeReader, Recogniser, SceneClassifier
from hyperdreambooth.faces.verifier import FaceVerifier
from hyperdreambooth.files import load_tensors, save_tensors, write_text
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, load_people
from hyperdreambooth.fitting.processes import Processes
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run
from hyperdreambooth.fitting.steps import steps as take
from hyperdreambooth.hypernetwork.model import build_hypernetwork
from hyperdreambooth.people import encode_crowd
from hyperdreambooth.pipeline import HyperDreamBooth, space_of
from hyperdreambooth.portraits.captions import STYLES
from recipes import denoiser, e4t, hyper, shipping
from recipes.budget import Budget
from recipes.cards import Card, data_lines
from recipes.embedded import STAGES, main, options, run
from recipes.photographs import Photographs
from recipes.workshop import Workshop
from tests.conftest import WORDS


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_whole_recipe_makes_what_the_package_ships(shop: Workshop) -> None:
    write_text(
        shop.cache / "faces.json", '{"sfhq": {"photographs": 9, "found": 7, "false": ["a.jpg"]}}'
    )  # as benchmarks.faces left it there
    said = list(run(shop))
    assert [line.removeprefix("[bold]") for line in said if line.startswith("[bold]")] == list(STAGES)
    base = load_base(shop.out / "base")
    assert base.card.picture_size == shop.size and base.fingerprint in said[said.index("[bold]ship") + 1]
    booth = HyperDreamBooth.load(shop.out / "base", hypernetwork=shop.out / "hypernetwork/hypernetwork.safetensors")
    person = booth.personalize(shop.out / "demo/reference.png", steps=1)
    drawn = booth.draw(person, "a watercolor of a [V] face")
    assert drawn.shape == (1, 3, shop.size, shop.size) and drawn.isfinite().all()
    for kind in (Recogniser, SceneClassifier, AttributeReader):
        judge = kind.load(shop.out / "judges" / f"{kind.kind.replace(' ', '-')}.safetensors")
        assert judge.look(drawn).isfinite().all() and judge.config == shop.sizes.judge
    verifier = load_tensors(shop.out / FACE_VERIFIER.relative_to(FOLDER))[0]
    FaceVerifier().load_state_dict(verifier)
    assert "licence and consent" in (card := (shop.out / "faces/README.md").read_text()) and "Portraits" not in card
    for part in ("base", "judges", "hypernetwork"):
        card = (shop.out / part / "README.md").read_text()
        assert "--only adopt" not in card
        assert "seeds 0 to 49" in card and "licence and consent are those of their folder" in card
        assert "## Recipe" in card and " s\n" in card
    fitted = [len(load_people(shop.fitted(world)).names) for world in ("portraits", "photographs")]
    said_so = f"{fitted[0]} portraits and {fitted[1]} photographs were pre-optimised"
    assert said_so in (shop.out / "hypernetwork/README.md").read_text()
    for part, score in {"judges": "portraits, neon", "e4t": "denoising, nobody's word", "faces": '"false": 1'}.items():
        assert score in (shop.out / part / "README.md").read_text()
    # An ablation beside it, which is asked for by name.
    assert "  the hypernetwork with independent layers" in list(run(shop, ["independent"]))
    ablation = METHODS["independent-layers"]
    assert isinstance(ablation, LiDB)
    ablation = replace(ablation, own=shop.out / INDEPENDENT_NETWORK.relative_to(FOLDER)).with_steps(1)
    work = ablation.personalizing(booth, [shop.out / "demo/reference.png"])
    assert list(work) and work.predicted is not None
    assert "seeds 0 to 49" in (shop.out / "independent/README.md").read_text()
    assert list(run(shop, ["independent"])) == ["[bold]independent"]
    # Again: nothing is done twice.
    before = contents(shop.cache)
    stages = [name for name in STAGES if name != "ship"]
    assert [line for line in run(shop, stages) if not line.startswith("[bold]")] == []
    assert contents(shop.cache) == before
    # From a hypernetwork that shipped: it is past the weight loss.
    folder = shop.cache / "hypernetwork"
    assert list(hyper.last_of_curve(folder)) == ["weights", "both"]
    assert booth.hypernetwork is not None
    save_tensors(shop.weights("hypernetwork-start"), booth.hypernetwork.state_dict())
    shutil.rmtree(folder)
    list(run(shop, ["hypernetwork"]))
    assert list(hyper.last_of_curve(folder)) == ["both"]


def test_a_training_that_is_stopped_goes_on(shop: Workshop) -> None:
    lines = shop.train("count", *counting(shop, steps=6), every=1)
    assert [line.split()[1] for line in islice(lines, 3)] == ["1", "2", "3"]
    lines.close()  # as a process that is told to end
    assert shop.checkpoint("count").exists() and not shop.weights("count").exists()
    assert [line.split()[1] for line in shop.train("count", *counting(shop, steps=6), every=1)] == ["4", "5", "6"]
    assert shop.weights("count").read_text() == "6"
    assert list(shop.train("count", *counting(shop, steps=9))) == []  # done is done


def test_a_training_whose_result_was_lost_is_not_taken_again(shop: Workshop) -> None:
    list(shop.train("count", *counting(shop, steps=3)))
    shop.weights("count").unlink()  # as if killed between the last step and the file
    assert list(shop.train("count", *counting(shop, steps=3))) == []
    assert shop.weights("count").read_text() == "3"


Counting = tuple[Callable[[torch.Generator, Checkpoint], Run], Callable[[Path], object]]


def counting(shop: Workshop, steps: int) -> Counting:
    """A training whose only number grows by one at every step."""
    count = torch.zeros(1, requires_grad=True)

    def begin(_generator: torch.Generator, checkpoint: Checkpoint) -> Run:
        config = FitConfig(steps=steps, lr=1.0)
        return take({"count": count}, lambda _step: -count.sum(), config, checkpoint=checkpoint)

    return begin, lambda path: path.write_text(f"{count.item():.0f}")


def test_latents_of_another_budget_are_refused(shop: Workshop) -> None:
    list(run(shop, ["frame", "pictures"]))
    save_tensors(shop.latents_file("portraits"), {"latents": torch.zeros(3, 4, 8, 8)})
    with pytest.raises(UserError, match="3 pictures, expected the 32"):
        shop.latents("portraits")


def test_pre_optimisation_stops_when_its_time_is_up(shop: Workshop, framed: Photographs, tmp_path: Path) -> None:
    booth, folder = HyperDreamBooth(shop.fresh_base()), tmp_path / "fitted"
    people = hyper.photographed(framed, shop.size)(0, 6)
    assert torch.equal(people.pictures[:, 1], people.pictures[:, 0].flip(-1)) and people.names == framed.names[:6]
    crowd = encode_crowd(booth.base, people, ("neon",))
    config = PreoptimizeConfig(fit=FitConfig(steps=1), shard=2)
    assert not hyper.is_fitted(folder, 6, minutes=1e-9)
    assert hyper.is_fitted(folder, 0, minutes=60)  # nobody is asked for
    list(hyper.fit_world(booth, crowd, folder, config, minutes=1e-9))
    assert load_people(folder).names == framed.names[:2] and hyper.is_fitted(folder, 6, minutes=1e-9)
    assert not hyper.is_fitted(folder, 6, minutes=60)
    list(hyper.fit_world(booth, crowd, folder, config, minutes=60))  # more time: the others too
    assert load_people(folder).names == framed.names[:6] and hyper.is_fitted(folder, 6, minutes=60)


def test_whoever_has_no_finite_fit_is_not_waited_for(shop: Workshop, framed: Photographs, tmp_path: Path) -> None:
    booth, folder = HyperDreamBooth(shop.fresh_base()), tmp_path / "fitted"
    crowd = encode_crowd(booth.base, hyper.photographed(framed, shop.size)(0, 3), ("neon",))
    crowd.latents[1] = float("nan")
    config = PreoptimizeConfig(fit=FitConfig(steps=1), shard=2)
    list(hyper.fit_world(booth, crowd, folder, config, minutes=60))
    assert hyper.people_fitted(folder) == 2 and hyper.is_fitted(folder, 3, minutes=60)


def test_lookalikes_come_behind_the_people_they_are_made_of(shop: Workshop, framed: Photographs) -> None:
    count = len(framed.names)
    people = hyper.photographed(framed, shop.size)(count - 1, count + 2)
    assert people.names == (framed.names[-1], *(f"{name}~1" for name in framed.names[:2]))
    plain = framed.centre(shop.size)
    assert torch.equal(people.pictures[0, 0], plain[-1])
    again = hyper.photographed(framed, shop.size)(count, count + 1).pictures[0]
    assert torch.equal(again, people.pictures[1]) and torch.equal(again[1], again[0].flip(-1))
    for row in range(2):  # near them, and somebody else
        difference = (people.pictures[1 + row, 0] - plain[row]).abs().mean()
        assert 0.01 < difference < (plain[0] - plain[1]).abs().mean()


def test_a_crowd_is_kept_in_shards(monkeypatch: pytest.MonkeyPatch, fresh_base: Base, tmp_path: Path) -> None:
    """What is loaded is what is encoded at once; shards that are there are not made again."""
    monkeypatch.setattr(hyper, "SHARD", 2)
    make = hyper.portraits(16)
    assert len(list(hyper.make_crowd(fresh_base, tmp_path, "portraits", 2, make))) == 1
    assert len(list(hyper.make_crowd(fresh_base, tmp_path, "portraits", 3, make))) == 1
    loaded, whole = (
        hyper.load_crowd(fresh_base, tmp_path, "portraits", 3),
        encode_crowd(fresh_base, make(0, 3), STYLES[1:]),
    )
    assert loaded.names == ("portrait-0", "portrait-1", "portrait-2") and loaded.prompts == whole.prompts
    assert torch.equal(loaded.pictures, whole.pictures) and torch.equal(loaded.masks, whole.masks)
    plain = loaded.latents[:, :4].float()
    assert torch.allclose(plain, whole.latents[:, :4], atol=2e-3 * float(plain.abs().max()))
    assert loaded.first(2).latents.shape == (2, 4 + 7, *fresh_base.latent_shape)


def test_every_row_of_the_budget_is_an_option() -> None:
    given = [word for row in fields(Budget) for word in ("--" + row.name.replace("_", "-"), "7")]
    budget = Budget.of(options(["--photographs", "p", "--cache", "c", *given]))
    assert {getattr(budget, row.name) for row in fields(Budget)} == {7}
    assert all(type(getattr(budget, row.name)) is type(row.default) for row in fields(Budget))
    assert Budget.of(options(["--photographs", "p", "--cache", "c"])) == Budget()


def test_the_defaults_take_six_hours_at_most() -> None:
    assert list(Budget().minutes()) == list(STAGES)
    assert 300 < sum(Budget().minutes().values()) <= 360


@pytest.mark.parametrize("row", ["people", "hypernetwork_portraits", "fitted_portraits"])
def test_nobody_who_tunes_or_reports_can_be_learnt_from(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = f"--{row.replace('_', '-')}"
    assert main(["--photographs", "x", "--cache", "y", "--dry-run", option, "15001"]) == 2
    assert "must not be learnt from" in " ".join(capsys.readouterr().err.split())


def test_several_processes_are_refused_what_they_cannot_share(shop: Workshop) -> None:
    with pytest.raises(UserError, match="2 processes for frame, fit, expected one"):
        next(run(replace(shop, processes=Processes(0, 2)), ["frame", "denoiser", "fit"]))


def test_a_dry_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--photographs", str(tmp_path), "--cache", str(tmp_path / "cache"), "--vae-minutes", "33", "--dry-run"]
    assert main(words) == 0 and not (tmp_path / "cache").exists()
    said = capsys.readouterr().err
    assert "vae_minutes" in said and "33.0" in said and "total" in said


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--photographs", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert main(words) == 2
    assert "holds no pictures" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        options([*words, "--only", "nothing"])


def test_cards_name_the_source_of_each_photograph() -> None:
    lines = data_lines(99, ["sfhq/a.jpg", "sfhq/b.jpg", "sfhq-t2i/c.jpg", "mine.jpg"])
    assert "seeds 0 to 99" in lines[0] and "1 photographs whose licence" in lines[1]
    assert "2 photographs" in lines[2] and "2022 David Beniaguev" in lines[2]
    assert "1 photographs" in lines[3] and "SFHQ-T2I" in lines[3]


def test_the_card_takes_over_what_the_base_seldom_draws(shop: Workshop, fresh_base: Base) -> None:
    for base, seldom in ((fresh_base.fingerprint, "doll, smiling"), ("another", "")):
        write_text(
            shop.cache / "quality.json", json.dumps({"base": base, "seldom": "doll, smiling", "portrait": {"a": 1}})
        )
        shipping.ship_base(shop, fresh_base)
        assert load_base(shop.out / "base").card.seldom == seldom
        assert ('"portrait"' in (shop.out / "base/README.md").read_text()) is bool(seldom)


def test_an_adopted_base_is_where_training_starts(shop: Workshop, fresh_base: Base) -> None:
    fresh_base.vae.register_to_config(scaling_factor=0.5)
    fresh_base.save(shop.out / "base", torch.float32)
    assert list(run(shop, ["adopt"])) == ["[bold]adopt", f"  the base {fresh_base.fingerprint}"]
    start, (vae, about) = load_tensors(shop.weights("denoiser-start"))[0], load_tensors(shop.weights("vae"))
    assert float(about["spread"]) == 2.0
    assert all(torch.equal(vae[name], tensor) for name, tensor in fresh_base.vae.state_dict().items())
    other = build_base(PRESETS["tiny"], WORDS, seed=1)
    assert other.fingerprint != fresh_base.fingerprint
    denoiser.load(other, start)
    assert fingerprint_of(other.text_encoder, other.unet) == fresh_base.fingerprint


def test_vae_and_judges_go_on_from_what_is_given_as_their_start(shop: Workshop) -> None:
    """At a learning rate of 0 they end as they began, wherever else they would have."""
    shop = replace(shop, budget=replace(shop.budget, vae_lr=0.0, judge_lr=0.0))
    list(run(shop, ["frame", "pictures", "people"]))
    starts = {"vae": build_base(PRESETS["tiny"], WORDS, seed=7).vae.state_dict()}
    torch.manual_seed(7)
    reader = AttributeReader(shop.sizes.judge)
    reader.save(shop.start("attribute-reader"), torch.float32)
    starts["attribute-reader"] = reader.state_dict()
    save_tensors(shop.start("vae"), starts["vae"])
    list(run(shop, ["vae", "judges"]))
    for stage, start in starts.items():
        trained = load_tensors(shop.weights(stage))[0]
        assert all(torch.allclose(trained[name].float(), tensor, atol=2e-3) for name, tensor in start.items()), stage


def test_an_adopted_verifier_counts_as_trained(shop: Workshop, fresh_base: Base) -> None:
    list(run(shop, ["faces"]))
    fresh_base.save(shop.out / "base", torch.float32)
    file = shop.out / FACE_VERIFIER.relative_to(FOLDER)
    shipped, card = file.read_bytes(), (file.parent / "README.md").read_text()
    assert len(shipped) < 120_000 and "5 photographs" in card and "1 photographs" in card
    other = replace(shop, cache=shop.cache.parent / "other")
    assert "  the face verifier" in list(run(other, ["adopt"]))
    assert list(run(other, ["faces"])) == ["[bold]faces"] and file.read_bytes() == shipped


def test_an_adopted_hypernetwork_is_where_training_starts(shop: Workshop, fresh_base: Base) -> None:
    fresh_base.save(shop.out / "base", torch.float32)
    network = build_hypernetwork(shop.sizes.hypernetwork, space_of(fresh_base), fresh_base.fingerprint, seed=3)
    file = shop.out / HYPERNETWORK.relative_to(FOLDER)
    network.save(file, torch.float32)
    Card("It", "About.", [], {"encoder": 12.0, "hypernetwork, both": 34.0}, adopted=True).write(file.parent)
    assert "`--only adopt`" in (file.parent / "README.md").read_text()
    assert not shipping._is_of_another_base(file, fresh_base)
    assert shipping._is_of_another_base(file, build_base(PRESETS["tiny"], WORDS, seed=1))
    assert list(run(shop, ["adopt"]))[-1] == "  the hypernetwork"
    start = load_tensors(shop.weights("hypernetwork-start"))[0]
    assert all(torch.equal(start[name], tensor) for name, tensor in network.state_dict().items())
    encoder = load_tensors(shop.weights("encoder"))[0]
    assert all(torch.equal(encoder[name], tensor) for name, tensor in network.encoder.state_dict().items())
    booth = HyperDreamBooth(fresh_base, network)
    word = e4t.fresh_network(booth)
    for parameter in word.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    word.save(shop.out / E4T_NETWORK.relative_to(FOLDER), fresh_base.fingerprint, fresh_base.name)
    assert list(run(shop, ["adopt"]))[-1] == "  what E4T learnt beforehand"
    kept = load_tensors(shop.weights("e4t-start"))[0]
    assert all(torch.equal(kept[name], tensor.half()) for name, tensor in word.state_dict().items())
    shop.checkpoint("encoder").write({"step": torch.zeros(1)}, {"seconds": 5.0})
    assert shipping._seconds(shop, "encoder", "denoiser") == {"encoder": 17.0}
