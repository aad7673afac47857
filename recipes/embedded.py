"""Everything in `src/hyperdreambooth/embedded/`, from nothing, by one command that can be stopped and repeated:

    python -m recipes.embedded --photographs PHOTOS --cache CACHE

Each stage keeps its state in the cache folder: what is finished is skipped, what was interrupted goes on. To do a stage
again, remove its file from the cache with the `.run` file beside it (of the hypernetwork, the folder), and likewise
those of the stages that build on it. `--only independent` trains and ships the hypernetwork of an ablation too, on
what the stages before it left and by the same budget. `--dry-run` prints what each stage may
spend; every number of the budget is an option. `--only adopt` before the first run lets the trainings of denoiser,
hypernetwork and E4T start from those that ship instead of from nothing, and takes VAE, encoder and judges as trained;
one of these goes on, too, when its `NAME.safetensors` in the cache is renamed to `NAME-start.safetensors`. Several
processes can share the first two, which is faster than one with as many threads:

    torchrun --standalone --nproc-per-node 2 -m recipes.embedded --photographs PHOTOS --cache CACHE --only hypernetwork
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from hyperdreambooth.embedded import FOLDER
from hyperdreambooth.errors import HyperDreamBoothError, UserError
from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.judges import AttributeReader, Judge, Recogniser, SceneClassifier
from hyperdreambooth.faces.verifier import FaceVerifier
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig
from hyperdreambooth.fitting.processes import Processes
from hyperdreambooth.fitting.steps import Checkpoint, Run, steps
from hyperdreambooth.hypernetwork.encoder import load_parameters
from hyperdreambooth.hypernetwork.model import HyperNetworkConfig, build_hypernetwork
from hyperdreambooth.hypernetwork.training import RESULT_FILE, TrainConfig
from hyperdreambooth.pipeline import HyperDreamBooth
from recipes import denoiser, e4t, faces, features, hyper, judges, vae
from recipes.budget import Budget
from recipes.measures import own_scores
from recipes.photographs import frame_photographs
from recipes.pictures import joined, make_shards, random_photographs, random_portraits
from recipes.shipping import SCORES_KEY, adopt, file_of, ship, ship_e4t, ship_independent, ship_verifier
from recipes.workshop import WORLDS, Workshop, schedule

ROOM = 8  # pixels by which a framed photograph is larger than a picture, so that it can be shifted
CURVE_EVERY = 100  # steps of the hypernetwork between two lines of its curve
PER_PERSON = 8  # portraits of each person that judges learn from
FACES_EACH = 4  # plain portraits of each person that the encoder learns from


def frame(shop: Workshop) -> Iterator[str]:
    """Photographs to framed faces, a little larger than the pictures."""
    yield from frame_photographs(shop.photographs, shop.framed, shop.size + ROOM)


def train_verifier(shop: Workshop) -> Iterator[str]:
    """What doubts faces, on the photographs; it ships at once, as the faces of the next stage are found with it.

    With `--out` elsewhere these are found with the one in the package.
    """
    file = shop.cache / "face-squares.safetensors"
    if not shop.weights("verifier").exists():
        yield from faces.gather(shop.photographs, file)
    verifier = judges.fresh(FaceVerifier).to(shop.device)
    config = schedule(shop.budget.verifier_minutes, lr=3e-3, warmup=50, ema=0.998, weight_decay=0.02)
    train = partial(faces.train_verifier, verifier, file, shop.budget.verifier_batch, config)
    yield from shop.train("verifier", train, lambda path: save_tensors(path, verifier.state_dict()))
    yield from ship_verifier(shop)


def draw_pictures(shop: Workshop) -> Iterator[str]:
    """The training pictures of both worlds."""
    budget, shard = shop.budget, shop.sizes.shard
    make = partial(random_portraits, people=budget.people, size=shop.size)
    yield from make_shards(shop.drawn, "portraits", budget.portraits, make, seed=1_000, shard=shard)
    make = partial(random_photographs, photographs=shop.split("training"), size=shop.size)
    yield from make_shards(shop.drawn, "photographs", budget.photograph_pictures, make, seed=2_000, shard=shard)
    make = partial(make, others=True)
    yield from make_shards(shop.drawn, "lookalikes", budget.lookalike_pictures, make, seed=5_000, shard=shard)


def train_vae(shop: Workshop) -> Iterator[str]:
    """The VAE, on both worlds; its latents get unit spread."""
    if shop.weights("vae").exists():
        return
    pictures = torch.cat([shop.pictures(world).pictures for world in WORLDS])
    model = shop.fresh_base().vae.requires_grad_(True).to(memory_format=torch.channels_last)
    if (start := shop.start("vae")).exists():
        load_parameters(model, load_tensors(start)[0], start)
    else:
        vae.quiet_residuals(model)

    def begin(generator: torch.Generator, checkpoint: Checkpoint) -> Run:
        def loss(_step: int) -> tuple[torch.Tensor, dict[str, float]]:
            shown = vae.batch_of(pictures, shop.budget.vae_batch, generator, shop.device)
            return vae.reconstruction_loss(model, shown, generator)

        config = schedule(shop.budget.vae_minutes, lr=shop.budget.vae_lr, warmup=100, ema=0.999, grad_clip=1.0)
        parameters = dict(model.named_parameters())
        return steps(parameters, loss, config, checkpoint=checkpoint, generators={"pictures": generator})

    def save(path: Path) -> None:
        shown = vae.batch_of(pictures, 500, torch.Generator().manual_seed(1), shop.device)
        save_tensors(path, model.state_dict(), {"spread": str(vae.latent_spread(model, shown))})

    yield from shop.train("vae", begin, save)


def encode_pictures(shop: Workshop) -> Iterator[str]:
    """The latents of all training pictures."""
    base = shop.seeing_base()
    for kind in shop.budget.shards:
        lines = denoiser.encode(base, shop.pictures(kind), shop.latents_file(kind))
        yield from (f"{kind}: {line}" for line in lines)


def train_denoiser(shop: Workshop) -> Iterator[str]:
    """U-Net and text encoder."""
    if shop.weights("denoiser").exists():
        return
    base = shop.seeing_base()
    if (start := shop.start("denoiser")).exists():
        denoiser.load(base, load_tensors(start)[0])
    for network in denoiser.networks(base).values():
        network.train().requires_grad_(True)
    base.unet.to(memory_format=torch.channels_last)
    parameters, reader = denoiser.parameters(base), denoiser.word_reader(base)
    beside = {f"words.{name}": tensor for name, tensor in reader.named_parameters()}  # learns too, and does not ship
    photographs = denoiser.joined([shop.latents("photographs"), shop.latents("lookalikes")])
    portraits = shop.latents("portraits")
    worlds = (portraits, portraits, photographs)  # portraits have far more to say

    def begin(generator: torch.Generator, checkpoint: Checkpoint) -> Run:
        loss = denoiser.training_loss(base, worlds, shop.budget.denoiser_batch, generator, reader, shop.processes)
        minutes, lr = shop.budget.denoiser_minutes, shop.budget.denoiser_lr
        config = schedule(minutes, lr=lr, warmup=200, ema=0.999, weight_decay=0.01, grad_clip=1.0)
        generators, learnt = {"training": generator}, parameters | beside
        return steps(learnt, loss, config, checkpoint=checkpoint, generators=generators, processes=shop.processes)

    yield from shop.train("denoiser", begin, lambda path: save_tensors(path, parameters))


def draw_people(shop: Workshop) -> Iterator[str]:
    """Several pictures of each of many people, for judges (in all styles) and encoder (plain ones)."""
    budget, shard = shop.budget, shop.sizes.shard
    make = partial(judges.random_people, people=budget.people, per_person=PER_PERSON, size=shop.size)
    yield from make_shards(shop.drawn, "people", budget.people_pictures, make, seed=3_000, shard=shard)
    make = partial(judges.random_people, people=budget.people, per_person=FACES_EACH, size=shop.size, plain=True)
    yield from make_shards(shop.drawn, "faces", budget.face_pictures, make, seed=4_000, shard=shard)


def train_judges(shop: Workshop) -> Iterator[str]:
    """All five judges: each by itself, on true pictures."""
    people, portraits, photographs = shop.people(), *(shop.pictures(world) for world in WORLDS)
    all_portraits = joined([people, portraits])
    budget, crowd = shop.budget, judges.Batch(people=shop.budget.recogniser_people)
    yield from _judge(shop, Recogniser, judges.train_recogniser, [(people, crowd), (photographs, crowd)])
    yield from _judge(
        shop, SceneClassifier, judges.train_scene_classifier, all_portraits, photographs, budget.judge_batch
    )
    yield from _judge(shop, AttributeReader, judges.train_attribute_reader, all_portraits, budget.judge_batch)
    everything = joined([all_portraits, photographs])
    yield from _judge(shop, SelfSupervised, features.train_self_supervised, everything, budget.self_supervised_batch)
    yield from _judge(shop, ImageText, features.train_image_text, everything, budget.image_text_batch)


def _judge(shop: Workshop, kind: type[Judge], train: Callable[..., Run], *data: object) -> Iterator[str]:
    """One judge; its file says how good it is itself."""
    judge: Judge = judges.fresh(partial(kind, shop.sizes.judge)).to(shop.device)
    if (start := shop.start(file_of(kind))).exists():
        judge.load_state_dict(kind.load(start).state_dict())
    config = schedule(shop.budget.judge_minutes, lr=shop.budget.judge_lr, warmup=50, ema=0.998, weight_decay=0.02)

    def begin(generator: torch.Generator, checkpoint: Checkpoint) -> Run:
        return train(judge, *data, config, generator, checkpoint)

    def save(path: Path) -> None:
        scores = own_scores(judge, shop.budget.judged_people, shop.split("tuning"))
        judge.save(path, about={SCORES_KEY: json.dumps(scores)})

    yield from (f"{kind.kind}: {line}" for line in shop.train(file_of(kind), begin, save))


def train_encoder(shop: Workshop) -> Iterator[str]:
    """The encoder that the hypernetwork starts from: a network apart from all judges."""
    task = judges.fresh_encoder(shop.sizes.hypernetwork.encoder).to(shop.device)
    photographs = judges.select(shop.pictures("photographs"), lambda scene: scene.style == "plain")
    crowd = judges.Batch(people=shop.budget.encoder_people, pictures=3)
    config = schedule(shop.budget.encoder_minutes, lr=1e-3, warmup=50, ema=0.998, weight_decay=0.02)

    def begin(generator: torch.Generator, checkpoint: Checkpoint) -> Run:
        worlds = [(shop.faces(), crowd), (photographs, crowd)]
        return judges.train_encoder(task, worlds, config, generator, checkpoint)

    yield from shop.train("encoder", begin, task.encoder.save)


def encode_crowd(shop: Workshop) -> Iterator[str]:
    """The people of both worlds whom the hypernetwork learns from, drawn and encoded."""
    base = shop.seeing_base()
    for world in WORLDS:
        make = (
            hyper.portraits(shop.size)
            if world == "portraits"
            else hyper.photographed(shop.split("training"), shop.size)
        )
        yield from hyper.make_crowd(base, shop.drawn, world, shop.crowd(world), make)


def fit_people(shop: Workshop) -> Iterator[str]:
    """Pre-optimised people of both worlds."""
    budget, config = shop.budget, PreoptimizeConfig()
    config = replace(
        config,
        fit=replace(config.fit, steps=budget.fit_steps, lr=budget.fit_lr),
        objective=replace(config.objective, noises=budget.fit_noises),
    )
    booth, minutes = HyperDreamBooth(shop.trained_base()), budget.fit_minutes / len(WORLDS)
    for world in WORLDS:
        if not hyper.is_fitted(shop.fitted(world), _to_fit(shop, world), minutes):
            crowd = hyper.load_crowd(booth.base, shop.drawn, world, shop.crowd(world)).first(_to_fit(shop, world))
            lines = hyper.fit_world(booth, crowd, shop.fitted(world), config, minutes)
            yield from (f"{world}: {line}" for line in lines)


def train_hypernetwork(shop: Workshop) -> Iterator[str]:
    """The hypernetwork, by eq. 2."""
    yield from _train_by_equation_2(shop, "hypernetwork", shop.sizes.hypernetwork)


def train_independent(shop: Workshop) -> Iterator[str]:
    """The hypernetwork of an ablation, whose layers know nothing of each other, otherwise as the true one; it ships."""
    yield from _train_by_equation_2(shop, "independent", replace(shop.sizes.hypernetwork, independent=True))
    if shop.processes.main:
        yield from ship_independent(shop)


def _train_by_equation_2(shop: Workshop, name: str, sizes: HyperNetworkConfig) -> Iterator[str]:
    """One hypernetwork into the folder of that name in the cache; from one that shipped, where that was adopted."""
    out = shop.cache / name
    if (out / RESULT_FILE).exists():
        return
    booth = HyperDreamBooth(shop.trained_base())
    network = build_hypernetwork(sizes, booth.space, booth.fingerprint, booth.base.name)
    start = shop.start(name)
    if start.exists():
        load_parameters(network, load_tensors(start)[0], start)
    network.encoder.load(shop.weights("encoder"))
    fitted = {
        world: (hyper.load_crowd(booth.base, shop.drawn, world, shop.crowd(world)), shop.fitted(world))
        for world in WORLDS
    }
    people, noises = shop.budget.hypernetwork_people, shop.budget.hypernetwork_noises
    config = TrainConfig(
        weights_batch=2 * people,
        both_batch=people,
        noises=noises,
        freeze_encoder=True,  # it can tell people apart already, and thawed it learnt nothing more: see docs/notes.md
        evaluate_every=CURVE_EVERY,
    )
    if start.exists():  # it is past the weight loss
        config = replace(config, weights=None)
    minutes, lr = shop.budget.hypernetwork_minutes, shop.budget.hypernetwork_lr
    yield from hyper.train_network(network.to(shop.device), booth, fitted, out, config, minutes, lr, shop.processes)


def train_e4t(shop: Workshop) -> Iterator[str]:
    """What E4T, a baseline, learns beforehand for the base and the hypernetwork that ship by now; then it ships too."""
    if not shop.weights("e4t").exists():
        yield from _train_e4t(shop)
    yield from ship_e4t(shop)


def _train_e4t(shop: Workshop) -> Iterator[str]:
    booth = shop.shipped_booth()
    network = e4t.fresh_network(booth)
    if (start := shop.start("e4t")).exists():
        network.load_state_dict(load_tensors(start)[0])
    crowds = [hyper.load_crowd(booth.base, shop.drawn, world, shop.crowd(world)) for world in WORLDS]
    worlds = [e4t.people_of(crowd, booth) for crowd in crowds]

    def begin(generator: torch.Generator, checkpoint: Checkpoint) -> Run:
        people, noises = shop.budget.hypernetwork_people, shop.budget.hypernetwork_noises
        loss = e4t.training_loss(network, booth, worlds, people, noises, generator)
        config = schedule(shop.budget.e4t_minutes, lr=shop.budget.hypernetwork_lr, warmup=50, ema=0.99, grad_clip=1.0)
        parameters = dict(network.named_parameters())
        return steps(parameters, loss, config, checkpoint=checkpoint, generators={"training": generator})

    save = partial(network.save, base=booth.fingerprint, base_name=booth.base.name)
    yield from shop.train("e4t", begin, save, every=50)


def _to_fit(shop: Workshop, world: str) -> int:
    """How many of them are to be fitted, if there is time."""
    most = {"portraits": shop.budget.fitted_portraits, "photographs": shop.budget.fitted_photographs}
    return min(most[world], shop.crowd(world))


STAGES: dict[str, Callable[[Workshop], Iterator[str]]] = {
    "faces": train_verifier,
    "frame": frame,
    "pictures": draw_pictures,
    "vae": train_vae,
    "latents": encode_pictures,
    "denoiser": train_denoiser,
    "people": draw_people,
    "judges": train_judges,
    "encoder": train_encoder,
    "crowd": encode_crowd,
    "fit": fit_people,
    "hypernetwork": train_hypernetwork,
    "ship": ship,
    "e4t": train_e4t,
}


SHARED = ("denoiser", "hypernetwork", "independent")  # several processes may take the steps of these together

# Not part of the way from nothing: asked for by name, adopt before the others, independent behind them.
BY_NAME: dict[str, Callable[[Workshop], Iterator[str]]] = {"adopt": adopt, "independent": train_independent}


def run(shop: Workshop, stages: Sequence[str] = tuple(STAGES)) -> Iterator[str]:
    """Do these stages, in the order given; yields what they report.

    Raises:
        UserError: there are several processes, and a stage that they cannot share.
    """
    if shop.processes.count > 1 and (single := [name for name in stages if name not in SHARED]):
        raise UserError(
            f"got {shop.processes.count} processes for {', '.join(single)}, expected one: "
            f"several can share --only {' or --only '.join(SHARED)}, when those before are done"
        )
    for name in stages:
        yield f"[bold]{name}"
        yield from (f"  {line}" for line in {**STAGES, **BY_NAME}[name](shop))
        shop.processes.wait()  # for the main one's files


def plan(budget: Budget) -> Iterator[str]:
    """The resolved budget, and about how long each stage takes."""
    yield from (f"{name:22}{value:>10,}" for name, value in asdict(budget).items())
    yield "[bold]minutes"
    yield from (f"  {name:20}{minutes:>10.1f}" for name, minutes in budget.minutes().items())
    yield f"  {'total':20}{sum(budget.minutes().values()):>10.1f}"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or these words in its place."""
    parser = argparse.ArgumentParser("recipes.embedded", description=__doc__.partition("\n")[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder of face photographs")
    parser.add_argument("--cache", type=Path, required=True, help="folder in which all stages keep their state")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to ship into [the package's own]")
    parser.add_argument("--only", choices=[*STAGES, *BY_NAME], nargs="+", help="these stages instead of all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the budget and do nothing")
    Budget.add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all that the package ships; the exit status: 2 wrong use, 1 work that failed."""
    given, console = options(arguments), Console(stderr=True, highlight=False)
    torch.set_flush_denormal(True)  # tiny numbers in dark pictures make a CPU four times as slow
    device, processes = torch.device(given.device), Processes.started()
    try:
        shop = Workshop(given.photographs, given.cache, Budget.of(given), device, given.out, processes=processes)
        for line in plan(shop.budget) if given.dry_run else run(shop, given.only or tuple(STAGES)):
            if processes.main:
                console.print(line)
    except HyperDreamBoothError as error:
        console.print(f"[red]{error}")
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
