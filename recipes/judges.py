"""Stage: the judges, and the encoder that the hypernetwork starts from. Four networks, each trained by itself.

A trained network is the run's average: `for report in run: ...`, then `with run.averaged(): judge.save(path)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperdreambooth.evaluation.identification import Rate, identification_rate
from hyperdreambooth.evaluation.judges import SCENE_OPTIONS, AttributeReader, Recogniser, SceneClassifier
from hyperdreambooth.evaluation.subjects import CHANGED
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, steps
from hyperdreambooth.hypernetwork.encoder import EncoderConfig, FaceEncoder
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.photographs import as_floats
from hyperdreambooth.portraits.captions import CONTEXTS, DOMAINS, EDITS, STYLES, Scene
from hyperdreambooth.portraits.person import ATTRIBUTES, truth_matrix
from hyperdreambooth.portraits.pictures import draw, in_styles
from hyperdreambooth.portraits.view import View
from recipes.photographs import Photographs
from recipes.pictures import Pictures

N = TypeVar("N", bound=nn.Module)

TEMPERATURE = 0.1  # of the contrastive loss
MILD = Jitter(zoom=0.05, shift=0.03, colour=0.06, blur=0.8)  # colours count: of skin and hair, or of a style


@dataclass(frozen=True)
class Batch:
    """How many people of a world are in a batch, and how many pictures of each."""

    people: int = 24
    pictures: int = 4


def fresh(kind: Callable[[], N], seed: int = 0) -> N:
    """A network with random weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return kind()


def fresh_encoder(config: EncoderConfig, seed: int = 0) -> EncoderTask:
    """An encoder to be taught, with random weights that depend on `seed` alone."""
    return fresh(lambda: EncoderTask(FaceEncoder(config)), seed)


def random_people(
    random: np.random.RandomState, count: int, people: int, per_person: int, size: int, plain: bool = False
) -> Pictures:
    """`count` portraits, `per_person` of each of a few people with seeds below `people`, for `make_shards`.

    Every picture has a view and, unless all are to be plain, a style of its own; some are in a context, in a far domain
    or edited.
    """
    seeds = np.repeat(random.choice(people, size=-(-count // per_person), replace=False), per_person)[:count].tolist()
    scenes = [Scene("portrait") if plain else _scene(random) for _ in seeds]
    drawn = draw(seeds, [View.sample(random) for _ in seeds], scenes, size)
    return Pictures((drawn * 255).round().byte(), tuple(scenes), tuple(seeds))


def select(pictures: Pictures, keep: Callable[[Scene], bool]) -> Pictures:
    """The pictures whose scene is to be kept."""
    rows = [row for row, scene in enumerate(pictures.scenes) if keep(scene)]
    return Pictures(
        pictures.pictures[rows],
        tuple(pictures.scenes[row] for row in rows),
        tuple(pictures.people[row] for row in rows),
    )


def true_to_person(scene: Scene) -> bool:
    """Whether all attributes of the person are as they are: no edit, no other proportions."""
    return scene.edit is None and scene.domain is None


def train_recogniser(
    recogniser: Recogniser,
    worlds: Sequence[tuple[Pictures, Batch]],
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Bring each person's pictures together and keep people apart, by the contrastive loss, each world by itself.

    Args:
        worlds: several pictures each of many people (of photographs: a person is one photograph, cut, mirrored and in
            several styles), and how many of them are in a batch.

    Returns:
        The run, whose metric `nearest` is the share of pictures in a batch whose nearest one is of the same person.
    """
    who = _WhoIsWho(worlds, CHANGED, generator, next(recogniser.parameters()).device)

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        drawn = who.draw()
        contrast, nearest = who.loss(recogniser(drawn.shown), drawn)
        return contrast, {"nearest": nearest}

    return train_judge(recogniser, loss, config, generator, checkpoint)


@dataclass(frozen=True)
class _Drawn:
    """A batch of several worlds: the pictures as they are seen, and of each world the rows and people's numbers."""

    shown: Tensor  # (N, 3, H, W) in [0, 1]
    rows: list[Tensor]
    people: list[Tensor]


class _WhoIsWho:
    """The contrastive loss on batches of several worlds, each world by itself."""

    def __init__(
        self,
        worlds: Sequence[tuple[Pictures, Batch]],
        jitter: Jitter,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.pictures = [pictures for pictures, _ in worlds]
        self.samplers = [PeopleSampler(pictures.people, batch) for pictures, batch in worlds]
        self.jitter, self.generator, self.device = jitter, generator, device

    def draw(self) -> _Drawn:
        """Some people of each world, and some pictures of each, a little changed."""
        rows, people = zip(*(sampler(self.generator) for sampler in self.samplers), strict=True)
        shown = torch.cat([world.pictures[some] for world, some in zip(self.pictures, rows, strict=True)])
        return _Drawn(as_shown(shown, self.jitter, self.generator, self.device), list(rows), list(people))

    def loss(self, raw: Tensor, drawn: _Drawn) -> tuple[Tensor, float]:
        """The loss of what a network makes of the pictures, (N, E), and how often the nearest is the same person."""
        parts = F.normalize(raw, dim=1).split([len(rows) for rows in drawn.rows])
        pairs = [(part, people.to(self.device)) for part, people in zip(parts, drawn.people, strict=True)]
        near = [_nearest_is_same(part, people) for part, people in pairs]
        return torch.stack([contrastive_loss(part, people) for part, people in pairs]).mean(), sum(near) / len(near)


def train_scene_classifier(
    classifier: SceneClassifier,
    portraits: Pictures,
    photographs: Pictures,
    batch: int,
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Name style, far domain, context and edit of portraits and the style of photographs, half a batch of each.

    What is read holds where every option is as likely as another (logit adjustment, arXiv 2007.07314): few training
    pictures are told to smile, but of a prompted one the question is whether it does, not whether most do. The metric
    `style` is the share of right styles in the batch.
    """
    device = next(classifier.parameters()).device
    half = batch // 2
    fields = list(SCENE_OPTIONS)
    labels = [scene_labels(world.scenes) for world in (portraits, photographs)]  # (n, fields) each
    usual = {
        field: torch.stack([_log_shares(known[:, column], len(SCENE_OPTIONS[field])) for known in labels]).to(device)
        for column, field in enumerate(fields)
    }  # (2, options) of each field, of either world

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        rows = [torch.randint(len(known), (half,), generator=generator) for known in labels]
        shown = torch.cat([portraits.pictures[rows[0]], photographs.pictures[rows[1]]])
        logits = classifier.by_field(classifier(as_shown(shown, MILD, generator, device)))
        target = torch.cat([known[some] for known, some in zip(labels, rows, strict=True)])  # (batch, fields)
        target = target.to(device)
        likely = usual["style"].repeat_interleave(half, dim=0)  # (batch, styles)
        total = F.cross_entropy(logits["style"] + likely, target[:, fields.index("style")])
        for column, field in enumerate(fields):
            if field != "style":
                total = total + F.cross_entropy(logits[field][:half] + usual[field][0], target[:half, column])
        right = logits["style"].argmax(dim=1) == target[:, fields.index("style")]
        return total, {"style": float(right.float().mean())}

    return train_judge(classifier, loss, config, generator, checkpoint)


def _log_shares(labels: Tensor, options: int) -> Tensor:
    """(options,): the logarithm of each number's share of labels (n,); as if each were there at least once."""
    counts = labels.bincount(minlength=options).clamp(min=1)
    return (counts / counts.sum()).log()


def train_attribute_reader(
    reader: AttributeReader,
    portraits: Pictures,
    batch: int,
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Read the attributes of the people of portraits that are `true_to_person`, in any style."""
    portraits = select(portraits, true_to_person)
    truth, device = truth_matrix(portraits.people), next(reader.parameters()).device

    def loss(_step: int) -> Tensor:
        rows = torch.randint(len(truth), (batch,), generator=generator)
        raw = reader(as_shown(portraits.pictures[rows], MILD, generator, device))
        return attribute_loss(raw, truth[rows].to(device))

    return train_judge(reader, loss, config, generator, checkpoint)


class EncoderTask(nn.Module):
    """A face encoder, and what its first feature is asked to see: who somebody is, and the attributes of portraits.

    Nothing but the encoder is kept; no judge takes part, so that what is judged never learns from its judge.
    """

    def __init__(self, encoder: FaceEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.attributes = nn.Linear(encoder.width, sum(attribute.width for attribute in ATTRIBUTES))

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> the feature of the whole face (N, D)."""
        whole: Tensor = self.encoder(pictures)[:, 0]
        return whole


def train_encoder(
    task: EncoderTask,
    worlds: Sequence[tuple[Pictures, Batch]],
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Teach an encoder to see. Afterwards: `with run.averaged(): task.encoder.save(path)`.

    Args:
        worlds: plain pictures, several of each of many people: portraits first, whose attributes it learns to read too;
            and how many people are in a batch.

    Returns:
        The run, whose metrics are the parts of the loss, and `nearest` as of a recogniser.
    """
    who, portraits = _WhoIsWho(worlds, MILD, generator, next(task.parameters()).device), worlds[0][0]
    truth = truth_matrix(portraits.people)

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        drawn = who.draw()
        whole = task(drawn.shown)
        contrast, nearest = who.loss(whole, drawn)
        rows = drawn.rows[0]
        attributes = attribute_loss(task.attributes(whole[: len(rows)]), truth[rows].to(whole.device))
        parts = {"attributes": attributes.item(), "contrast": contrast.item(), "nearest": nearest}
        return attributes + contrast, parts

    return train_judge(task, loss, config, generator, checkpoint)


class PeopleSampler:
    """Draws a batch of some people and some pictures of each; pictures repeat only where a person has too few."""

    def __init__(self, people: Sequence[int], batch: Batch) -> None:
        _, label, self._counts = torch.tensor(people).unique(return_inverse=True, return_counts=True)
        self._order = label.argsort(stable=True)  # the rows of person 0, of person 1, ...
        self._first = self._counts.cumsum(0) - self._counts
        self._batch = batch
        if len(self._counts) < batch.people:
            raise ValueError(f"got {len(self._counts)} people, expected at least the {batch.people} of a batch")

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of the pictures and a number of each one's person: (people * pictures,) int64 each."""
        chosen = torch.randperm(len(self._counts), generator=generator)[: self._batch.people]  # (P,)
        counts = self._counts[chosen, None]  # (P, 1)
        keys = torch.rand(len(chosen), max(int(counts.max()), self._batch.pictures), generator=generator)
        keys = keys + (torch.arange(keys.shape[1]) >= counts)  # a person's own pictures come first, shuffled
        offsets = keys.argsort(dim=1)[:, : self._batch.pictures] % counts  # (P, K)
        rows = self._order[self._first[chosen, None] + offsets]  # (P, K)
        return rows.flatten(), chosen.repeat_interleave(self._batch.pictures)


def contrastive_loss(embeddings: Tensor, people: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out): unit embeddings (M, E), people (M,)."""
    likeness = embeddings @ embeddings.T / temperature  # (M, M)
    itself = torch.eye(len(people), dtype=torch.bool, device=people.device)
    log_share = likeness.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    same = (people[:, None] == people) & ~itself
    return -(log_share.masked_fill(~same, 0.0).sum(dim=1) / same.sum(dim=1)).mean()


def attribute_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy over attributes: raw numbers (N, T) of an attribute reader, `truth_matrix` rows (N, T)."""
    widths = [attribute.width for attribute in ATTRIBUTES]
    losses = [
        F.cross_entropy(seen, true) if attribute.choices else F.binary_cross_entropy_with_logits(seen, true)
        for attribute, seen, true in zip(ATTRIBUTES, raw.split(widths, dim=1), truth.split(widths, dim=1), strict=True)
    ]
    return torch.stack(losses).mean()


def scene_labels(scenes: Sequence[Scene]) -> Tensor:
    """(N, fields) int64: the option of each field of `SCENE_OPTIONS`."""
    return torch.tensor(
        [[options.index(getattr(scene, field)) for field, options in SCENE_OPTIONS.items()] for scene in scenes]
    )


def portraits_identified(
    recogniser: Recogniser, seeds: Sequence[int], style: str, random: np.random.RandomState, views: int = 3
) -> Rate:
    """The recogniser's own rate on true portraits: in one view each, among all, known by `views` other views each."""
    scenes = [Scene("portrait", style)] * len(seeds)
    size = recogniser.config.picture_size
    seen = [recogniser.embed(draw(seeds, [View.sample(random) for _ in seeds], scenes, size)) for _ in range(views + 1)]
    return identification_rate(torch.stack(seen[1:]).mean(dim=0), seen[0], torch.arange(len(seeds)))


def photographs_identified(
    recogniser: Recogniser, photographs: Photographs, style: str, generator: torch.Generator
) -> Rate:
    """The recogniser's own rate on true photographs: mirrored, cut and lit otherwise, among all as they are."""
    size = recogniser.config.picture_size
    room = (photographs.pictures.shape[-1] - size) // 2
    plain = as_floats(photographs.pictures[..., room : room + size, room : room + size])
    changed = CHANGED(plain.flip(-1), generator)
    gallery, probes = (recogniser.embed(in_styles(some, [style] * len(some))) for some in (plain, changed))
    return identification_rate(gallery, probes, torch.arange(len(plain)))


def train_judge(
    network: nn.Module,
    loss: Callable[[int], Tensor | tuple[Tensor, dict[str, float]]],
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None,
) -> Run:
    """A run that trains all of a network; whatever the loss draws comes from the generator."""
    network.train()
    parameters = dict(network.named_parameters())
    return steps(parameters, loss, config, checkpoint=checkpoint, generators={"training": generator})


def as_shown(pictures: Tensor, jitter: Jitter, generator: torch.Generator, device: torch.device) -> Tensor:
    """uint8 pictures as a network sees them in training."""
    return jitter(as_floats(pictures.to(device)), generator)


@torch.no_grad()
def _nearest_is_same(embeddings: Tensor, people: Tensor) -> float:
    likeness = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
    return float((people[likeness.argmax(dim=1)] == people).float().mean())


def _scene(random: np.random.RandomState) -> Scene:
    """Any style; three in ten in a context, in a far domain or edited."""
    style, kind = STYLES[random.randint(len(STYLES))], random.randint(10)
    extra = {0: ("context", CONTEXTS), 1: ("domain", DOMAINS), 2: ("edit", EDITS)}
    if kind not in extra:
        return Scene("portrait", style)
    field, options = extra[kind]
    return Scene("portrait", style, **{field: options[random.randint(len(options))]})
