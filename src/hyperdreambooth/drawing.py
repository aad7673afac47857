"""Draw people: persons, prompts and noises in, pictures out, different people in one batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth.base.hardware import holds_people, name_of
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import NotFinite, UserError, WrongBase, WrongSpace
from hyperdreambooth.identity import Identity, strength
from hyperdreambooth.lidb import Adapters, LiDBSpace, LoRALayout
from hyperdreambooth.lidb.sites import total_width
from hyperdreambooth.progress import Progress, log
from hyperdreambooth.tuned import Tuned, is_tuned, read_tuned

Person = Identity | Tuned
Subject = Person | None
"""Whom to draw; None is nobody, the base as it is."""
Likeness = float | Literal["usual"] | None
"""How strong a person shows: "usual" is what was found best for how they were made; None draws as other programs do."""

Wearing = Callable[[], AbstractContextManager[Base]]
"""Makes the context in which the base that comes of it answers for the people."""

LIKENESS = 3.0
"""How far people who were fitted are drawn away from nobody, see `DrawConfig.answers`: searched on tuning people."""
LIKENESS_PREDICTED = 5.0
"""The same of who was predicted alone: a guess is nearer to everybody, and the style stands more of it."""

PHASE = "draw"
_MERGED = 50_000_000  # weights of adapted layers, at most, of which one person may have a copy


class Answer(NamedTuple):
    """One question to the U-Net at each step of the sampler."""

    factor: float  # by which the answer counts; those of a picture have the sum 1
    person: bool  # whether the person is worn
    prompt: bool  # whether the prompt is read, or ""


@dataclass(frozen=True)
class DrawConfig:
    """How pictures are drawn."""

    count: int = 1  # pictures of each pair
    seed: int = 0  # the k-th picture of a pair starts from the noise of seed + k, whatever else is drawn with it
    steps: int = 25  # of the sampler
    guidance: float = 5.0  # towards the prompt, classifier-free, off at 1 or less
    likeness: Likeness = "usual"  # towards the person, see `of` and `answers`
    strength: float = 1.0  # factor of the person's dW: 0 is the base, 1 the person
    rescale: float = 0.0  # how far contrast and colours that guidance has stretched are brought back, 0 to 1
    batch: int = 16  # pictures at once, where the base is not too large for so many

    def __post_init__(self) -> None:
        if min(self.count, self.steps, self.batch) < 1:
            raise UserError(f"got count {self.count}, steps {self.steps}, batch {self.batch}: expected 1 or more")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"got rescale {self.rescale}, expected 0 to 1")
        likeness = LIKENESS if self.likeness in (None, "usual") else self.likeness
        factors = (self.guidance, self.strength, likeness)
        if not all(isinstance(factor, float | int) and math.isfinite(factor) for factor in factors):
            raise UserError(
                f"got guidance {self.guidance}, likeness {self.likeness}, strength {self.strength}: "
                "expected finite numbers"
            )

    def of(self, person: Subject) -> DrawConfig:
        """How one person is drawn: with the likeness that is asked for, or usual; nobody is like nobody, without."""
        if person is None:
            return replace(self, likeness=None)
        if self.likeness != "usual":
            return self
        predicted = isinstance(person, Identity) and person.how.get("steps") == 0
        return replace(self, likeness=LIKENESS_PREDICTED if predicted else LIKENESS)

    def answers(self) -> list[Answer]:
        """The U-Net's answers that make a step of the sampler, and by which factor each counts.

        Classifier-free guidance g alone, the person in both halves, is what other programs draw:

            (1 - g) e(person, "") + g e(person, prompt)

        With a likeness l, what the prompt changes in nobody counts g times, what the person changes under that prompt
        l times (a factor of 0 spares that answer, so that l = g is no dearer than guidance alone):

            (1 - g) e(nobody, "") + (g - l) e(nobody, prompt) + l e(person, prompt)

        Where it is the usual one, of people who were fitted: of one person see `of`.
        """
        g = max(self.guidance, 1.0)
        if self.likeness is None:
            all_answers = [Answer(1 - g, True, False), Answer(g, True, True)]
        else:
            l = LIKENESS if self.likeness == "usual" else self.likeness  # noqa: E741  # the formula's
            all_answers = [Answer(1 - g, False, False), Answer(g - l, False, True), Answer(l, True, True)]
        return [answer for answer in all_answers if answer.factor]

    def samples(self, people: Sequence[Subject], base: Base) -> int:
        """Samples that go through the base's U-Net for pictures of these people, so many of each."""
        return self.count * base.evaluations(self.steps) * sum(len(self.of(one).answers()) for one in people)


@dataclass(frozen=True)
class _Job:
    """One picture to draw."""

    person: Subject
    prompt: str
    seed: int


def draw(
    base: Base,
    adapters: Adapters,
    people: Sequence[Subject],
    prompts: Sequence[str],
    config: DrawConfig,
    progress: Callable[[Progress], None] | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """N pairs of a person and a prompt to (N * count, 3, H, W) float32 in [0, 1] on the CPU, pair after pair.

    The people must be of this base and of the adapters' space: see `check_person`.

    Args:
        progress: hears of every step of the sampler.
        seeds: of each pair, in the place of the one in `config`.

    Raises:
        UserError: a person is merged into the base, or the adapters are ejected. NotFinite: the pictures.
    """
    adapters.check_bare()
    jobs = [
        _Job(person, prompt, seed + k)
        for person, prompt, seed in zip(people, prompts, seeds or [config.seed] * len(people), strict=True)
        for k in range(config.count)
    ]
    batches = list(_batches(jobs, config, min(config.batch, base.at_once)))
    each, drawn = base.evaluations(config.steps), dict[int, Tensor]()
    for number, (config, rows) in enumerate(batches):

        def report(done: int, _: int, before: int = each * number) -> None:
            if progress is not None:
                progress(Progress(PHASE, before + done, each * len(batches)))

        together = [jobs[row] for row in rows]
        with adapters.wear(adapters.outfit(None)):  # to the end: nobody else wears anything meanwhile
            wearing = _asked(base, adapters, [job.person for job in together], config.strength)
            pictures = _draw_batch(base, wearing, config, together, report)
        drawn |= dict(zip(rows, pictures, strict=True))
    return torch.stack([drawn[row] for row in range(len(jobs))])


def _batches(jobs: Sequence[_Job], config: DrawConfig, size: int) -> Iterator[tuple[DrawConfig, list[int]]]:
    """The rows of what is drawn together, and how: people of one likeness, nobody apart, a tuned person alone."""
    kinds: dict[tuple[object, DrawConfig], list[int]] = {}
    for row, job in enumerate(jobs):
        who = id(job.person) if isinstance(job.person, Tuned) else type(job.person)
        kinds.setdefault((who, config.of(job.person)), []).append(row)
    for (_, how), rows in kinds.items():
        yield from ((how, rows[first : first + size]) for first in range(0, len(rows), size))


def _asked(base: Base, adapters: Adapters, people: Sequence[Subject], factor: float) -> Wearing:
    """Who answers for the people of a batch: all of one kind."""
    if isinstance(tuned := people[0], Tuned):
        own = tuned.on(base, factor)
        return lambda: nullcontext(own)
    if people[0] is None:
        return lambda: nullcontext(base)
    return _wearing(base, adapters, [one for one in people if isinstance(one, Identity)], factor)


def _wearing(base: Base, adapters: Adapters, people: Sequence[Identity | None], factor: float) -> Wearing:
    """What makes the base answer for N people, their dW multiplied by a factor.

    One person on a small base is added to the layers' weights once, where these can hold people, so that a pass costs
    what it costs without anybody.
    """
    small = sum(site.n_in * site.n_out for site in adapters.space.sites) <= _MERGED
    alone = len(set(people)) == 1 and small and holds_people(base)
    strong = {person: _strengthened(person, factor, adapters.space) for person in people}
    weights, lora = stack([strong[person] for person in people[: 1 if alone else None]], adapters.space)
    weights, lora = weights.to(base.device), None if lora is None else lora.to(base.device)
    if alone:
        under = adapters.weights_with(weights[0], None if lora is None else lora[0])
        outfit = adapters.outfit(None, under=under)
    else:
        outfit = adapters.outfit(weights, lora)

    @contextmanager
    def wear() -> Iterator[Base]:
        with adapters.wear(outfit):
            yield base

    return wear


def _draw_batch(
    base: Base,
    wearing: Wearing,
    config: DrawConfig,
    jobs: Sequence[_Job],
    report: Callable[[int, int], None],
) -> Tensor:
    """N pictures at once, (N, 3, H, W): the base answers for nobody, and what `wearing` makes of it for the people."""
    answers = config.answers()
    shares = [(person, [k for k, one in enumerate(answers) if one.person == person]) for person in (False, True)]

    def ask(question: Callable[[Base, list[int]], Tensor]) -> Tensor:
        """What is said to all K N rows, of nobody's answers and of the people's, in the order of the answers."""
        parts = dict[int, Tensor]()
        for person, rows in shares:
            if rows:
                with wearing() if person else nullcontext(base) as one:
                    parts |= zip(rows, question(one, rows).chunk(len(rows)), strict=True)
        return torch.cat([parts[k] for k in range(len(answers))])

    def predict(latents: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        seen, read = latents.chunk(len(answers)), states.chunk(len(answers))
        return ask(lambda one, rows: one.predict(_chosen(seen, rows), timestep, _chosen(read, rows)))

    noise, generators = _noise(base, jobs)
    with torch.no_grad():
        texts = [[job.prompt if answer.prompt else "" for job in jobs] for answer in answers]
        states = ask(lambda one, rows: one.encode_prompts([text for k in rows for text in texts[k]]))  # (K * N, L, D)
        factors = [answer.factor for answer in answers]
        shaped = states.unflatten(0, (len(answers), len(jobs)))
        latents = base.sample_mixed(shaped, factors, noise, config.steps, report, generators, predict, config.rescale)
        pictures = base.decode(latents).cpu()
    if not pictures.isfinite().all():
        raise NotFinite(
            f"the pictures are not finite in {name_of(base.dtype)}, expected finite ones: draw with "
            "--precision fp32, or bf16 where the GPU has it"
        )
    return pictures


def _chosen(parts: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    return torch.cat([parts[k] for k in rows])


def _noise(base: Base, jobs: Sequence[_Job]) -> tuple[Tensor, list[torch.Generator]]:
    """What each picture begins with, (N, C, h, w), and the generators of what is added on its way."""
    generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
    return torch.cat([base.noise(1, generator) for generator in generators]), generators


def stack(people: Sequence[Identity | None], space: LiDBSpace) -> tuple[Tensor, Tensor | None]:
    """N people of any ranks as one batch to wear: (N, S, R, a + b), and (N, size) if any has full-space factors.

    Missing ranks and factors are zero, and so is what they add to dW.
    """
    weights = [space.rule.start() if person is None else person.weights for person in people]
    own = space.of(*weights)
    ranks = max(one.shape[1] for one in weights)
    packed = torch.stack([own.fill(one, ranks) for one in weights])
    loras = [
        None if person is None or person.lora is None else space.of(person.weights).fill_lora(person.lora, own)
        for person in people
    ]
    rank = max(0 if lora is None else lora.numel() for lora in loras) // total_width(own.sites)
    if rank == 0:
        return packed, None
    return packed, torch.stack([_padded(lora, LoRALayout(own.sites, rank)) for lora in loras])


def pair(people: Subject | Sequence[Subject], prompts: str | Sequence[str]) -> tuple[list[Subject], list[str]]:
    """One or N people and one or N prompts as N of each. Raises UserError for N and M."""
    persons = [people] if people is None or isinstance(people, Person) else list(people)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    length = max(len(persons), len(texts))
    if not persons or not texts or not {len(persons), len(texts)} <= {1, length}:
        raise UserError(f"got {len(persons)} identities and {len(texts)} prompts, expected as many of each, or one")
    return persons * (length // len(persons)), texts * (length // len(texts))


def read_person(path: str | Path) -> Person:
    """The file of a person of any method and any base. Raises BadFile or BadIdentityFile for anything else."""
    return read_tuned(path) if is_tuned(path) else Identity.open(path)


def check_person(person: Subject, base: Base, fingerprint: str, space: LiDBSpace) -> None:
    """Raise WrongBase or WrongSpace for a person that means nothing on this base, whose fingerprint is given."""
    if person is None:
        return
    if person.base != fingerprint:
        raise WrongBase.of("the person", person.base, person.base_name, fingerprint, base.name)
    if isinstance(person, Identity) and person.space not in (space.info, space.rule.info):
        raise WrongSpace("got a person of another LiDB space: use the base and settings that it was made with")


def note_other_word(person: Subject, base: Base) -> None:
    """Log that "[V]" is another word on this base than where a person was made, if it is: it would show a stranger."""
    if person is not None and person.rare_token != base.rare_token:
        log.warning(
            'the person answers to "%s", and [V] is "%s" on this base: write "%s" in its place, or name it in the '
            "base's card",
            *(person.rare_token, base.rare_token, person.rare_token),
        )


def named_in(prompt: str, person: Subject) -> bool:
    """Whether a prompt holds all words that a person answers to, who was made without "[V]" by another program."""
    said = set(re.findall(r"\w+", prompt.lower()))
    return (
        isinstance(person, Identity)
        and "[V]" not in person.prompt
        and set(re.findall(r"\w+", person.prompt.lower())) <= said
    )


def note_faults(base: Base, prompt: str, of_somebody: bool = True) -> None:
    """Log what a prompt says in vain; none of it is a reason to stop: unknown words, too many words, nobody named, what
    the base seldom draws.

    Args:
        of_somebody: whether a person is meant to show, so that the prompt should hold "[V]".
    """
    spelled = base.spell(prompt)
    if of_somebody and base.rare_token.lower() not in re.findall(r"\w+", spelled.lower()):
        log.warning('the prompt "%s" has no "[V]": it may show anybody', prompt)
    length, longest = len(base.tokenizer(spelled, verbose=False).input_ids), base.tokenizer.model_max_length
    if length > longest:
        log.warning('the prompt "%s" has %d tokens, more than %d: its end is not read', prompt, length, longest)
    _note_unknown_words(base, prompt)
    if seldom := [phrase for phrase in base.card.seldom.split(", ") if phrase and phrase in prompt.lower()]:
        log.warning('the base "%s" seldom draws "%s": it may not show', base.name, '" or "'.join(seldom))


def _note_unknown_words(base: Base, prompt: str) -> None:
    if unknown := base.unknown_words(prompt):
        words = ", ".join(f'"{word}"' for word in unknown)
        log.warning('the base "%s" never saw the word %s of "%s": it may change nothing', base.name, words, prompt)


def _strengthened(person: Identity | None, factor: float, space: LiDBSpace) -> Identity | None:
    return person if person is None or factor == 1 else strength(person, factor, space)


def _padded(lora: Tensor | None, layout: LoRALayout) -> Tensor:
    """Flat factors of a lower rank, or none, as flat factors (size,) of the layout's rank."""
    if lora is None:
        return torch.zeros(layout.size)
    own = LoRALayout(layout.sites, lora.numel() // total_width(layout.sites))
    missing = layout.rank - own.rank
    return layout.pack(
        [(functional.pad(down, (0, 0, 0, missing)), functional.pad(up, (0, missing))) for down, up in own.split(lora)]
    )
