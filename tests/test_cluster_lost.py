"""Machines that are lost, full or without the package: a fake Ray, whose workers have their fates beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from hyperdreambooth import cluster
from hyperdreambooth.cluster import Cluster, scatter
from hyperdreambooth.errors import DiskFull, NotFinite, UserError, WorkError
from tests.works import open_counting

TWO = Cluster(workers=2)


class Disks:
    """In the place of Ray: workers that do their tasks at once, each on the next machine; some disks are full."""

    class exceptions:  # as Ray calls it
        RayTaskError = type("RayTaskError", (Exception,), {})
        RayError = type("RayError", (Exception,), {})

    def __init__(self, full: list[bool]) -> None:
        self.full, self.begun, self.ended = full, 0, 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[str]:
        return ["one", "two"]

    def remote(self, **_: object) -> Callable[[object], SimpleNamespace]:
        return lambda _: SimpleNamespace(remote=self._worker)

    def _worker(self) -> SimpleNamespace:
        full = self.full[self.begun]
        self.begun += 1
        return SimpleNamespace(
            arrive=SimpleNamespace(remote=lambda: iter(())),
            do=SimpleNamespace(remote=lambda _, task: iter([(full, task)])),
        )

    def wait(self, streams: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        """Those that arrive come first, in order; then the worker that was begun last has news first."""
        arriving = [stream for stream in streams if isinstance(stream, type(iter(())))]
        chosen = (arriving or streams[::-1])[:num_returns]
        return chosen, [stream for stream in streams if stream not in chosen]

    def get(self, news: tuple[bool, int]) -> int:
        full, task = news
        if full:
            error = self.exceptions.RayTaskError()
            error.cause = DiskFull("no room: free some space and run again")
            raise error
        return task

    def kill(self, _worker: object) -> None:
        self.ended += 1


class Lost(Disks):
    """The second machine is lost as soon as a task runs there, and whoever comes after finds no place."""

    never: object = object()

    def _worker(self) -> SimpleNamespace:
        self.begun += 1
        number = self.begun
        never, nothing = SimpleNamespace(remote=lambda: self.never), SimpleNamespace(remote=lambda: iter(()))
        do = SimpleNamespace(remote=lambda _, task: iter([(number, task)]))
        return SimpleNamespace(arrive=never if number > 2 else nothing, do=do)

    def wait(self, streams: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        there = [stream for stream in streams if stream is not self.never]
        assert there, "everybody waits for a worker that never comes"
        return super().wait(there, num_returns)

    def get(self, news: tuple[bool, int]) -> int:
        number, task = news
        if number == 2:
            raise self.exceptions.RayError()
        return task


def test_no_task_waits_for_a_worker_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is lost takes its worker's place with it; the other one does all tasks."""

    @contextmanager
    def fake() -> Iterator[Disks]:
        yield Lost([])

    monkeypatch.setattr(cluster, "joined", lambda _: fake())
    assert sorted(scatter(open_counting, range(4), TWO)) == [0, 1, 2, 3]


class Mortal(Disks):
    """Each worker has its fate: it dies on its way, at its first task, or behind news of that, or lives."""

    def __init__(self, fates: str) -> None:
        super().__init__([])
        self.fates = iter(fates)

    def _worker(self) -> SimpleNamespace:
        fate = next(self.fates)
        arrive = SimpleNamespace(remote=lambda: iter([(True, 0)] if fate == "w" else ()))
        dies = [False, True] if fate == "n" else [fate == "t"]
        return SimpleNamespace(
            arrive=arrive, do=SimpleNamespace(remote=lambda _, task: iter([(d, task) for d in dies]))
        )

    def get(self, news: tuple[bool, int]) -> int:
        dies, task = news
        if dies:
            told = f"The actor failed to import. {'x' * 200}\nModuleNotFoundError: No module named 'hyperdreambooth'"
            raise self.exceptions.RayError(told)
        return task


def test_workers_that_cannot_start_end_the_work_when_they_come_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """w: one dies on its way; t: at its first task; l: it lives."""

    @contextmanager
    def fake(fates: str) -> Iterator[Disks]:
        yield Mortal(fates)

    for fates, expected in (("wwtwwl", [0, 1]), ("wwtwww", None)):
        monkeypatch.setattr(cluster, "joined", lambda _, fates=fates: fake(fates))
        if expected:
            assert list(scatter(open_counting, range(2), Cluster(1))) == expected
            continue
        with pytest.raises(WorkError, match=r"could not start \(ModuleNotFoundError: No .*\): the same package"):
            list(scatter(open_counting, range(2), Cluster(1)))


def test_only_losses_without_news_between_them_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """n: a worker says how far its task is, and dies; t: it dies before; l: it lives. Without end it does not go on."""

    @contextmanager
    def fake(fates: str) -> Iterator[Disks]:
        yield Mortal(fates)

    cases = {"nnnl": 0, "nnnnnl": 0, "ttntnl": 0, "ttt": 3, "ntt": 3, "ttntt": 5, "n" * 20: 20}
    for fates, died in cases.items():
        monkeypatch.setattr(cluster, "joined", lambda _, fates=fates: fake(fates))
        news, work = list[int](), scatter(open_counting, [7], Cluster(1))
        if died:
            with pytest.raises(WorkError, match=rf"^{died} workers died at the same task"):
                news.extend(work)
        else:
            news.extend(work)
        assert news == [7] * (fates.count("n") + fates.count("l")), fates


class Failing(Disks):
    """Each worker raises what it has at its first task, unless that is None."""

    def __init__(self, causes: list[Exception | None]) -> None:
        super().__init__([])
        self.causes = iter(causes)

    def _worker(self) -> SimpleNamespace:
        self.begun += 1
        cause = next(self.causes)
        arrive = SimpleNamespace(remote=lambda: iter(()))
        return SimpleNamespace(arrive=arrive, do=SimpleNamespace(remote=lambda _, task: iter([(cause, task)])))

    def get(self, news: tuple[Exception | None, int]) -> int:
        cause, task = news
        if cause is not None:
            error = self.exceptions.RayTaskError()
            error.cause = cause
            raise error
        return task


BROKEN, BUG = RuntimeError("CUDA error: an illegal memory access\nwas encountered"), KeyError("a bug")
SHORT = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
MEANT = [UserError("no such base"), WorkError("the disk failed"), NotFinite("the loss is nan")]


@pytest.mark.parametrize(
    ("causes", "begun", "raised"),
    [
        ([BROKEN, BUG, None], 3, None),
        ([BROKEN, BUG, BROKEN], 3, BROKEN),
        ([BUG, BUG, BUG], 3, BUG),
        *(([one], 1, one) for one in (*SHORT, *MEANT)),
    ],
)
def test_what_nobody_foresaw_may_be_one_machine_s_alone(
    causes: list[Exception | None],
    begun: int,
    raised: Exception | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is meant, or a memory that is too small, ends the work at the first worker."""
    crew = Failing(causes)

    @contextmanager
    def fake() -> Iterator[Disks]:
        yield crew

    monkeypatch.setattr(cluster, "joined", lambda _: fake())
    if raised is None:
        assert list(scatter(open_counting, range(2), Cluster(1))) == [0, 1]
        assert "a worker failed (RuntimeError: CUDA error: an illegal memory access was encountered)" in caplog.text
        assert "a worker failed (KeyError: 'a bug')" in caplog.text
    else:
        with pytest.raises(type(raised)) as caught:
            list(scatter(open_counting, range(2), Cluster(1)))
        assert caught.value is raised
    assert crew.begun == crew.ended == begun and len(caplog.records) == begun - 1


def test_the_last_disk_that_is_full_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second worker has done its task and is gone when the first one finds its disk full."""

    @contextmanager
    def fake(full: list[bool]) -> Iterator[Disks]:
        yield Disks(full)

    for full, expected in (([True, False, False], {0, 1}), ([True, False, True, True], None)):
        monkeypatch.setattr(cluster, "joined", lambda _, full=full: fake(full))
        if expected:
            assert set(scatter(open_counting, range(2), TWO)) == expected
        else:
            with pytest.raises(DiskFull, match="free some space"):
                list(scatter(open_counting, range(2), TWO))
