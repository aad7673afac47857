"""One work on many tasks, over the workers of a Ray cluster. It knows nothing of the work.

    def open_work() -> Callable[[int], Iterator[str]]: ...      # runs once in each worker

    for news in scatter(open_work, range(100), Cluster(workers=8)):
        print(news)

A worker that dies, or fails as nobody foresaw, is replaced and its task given to another, which has to go on with what
the task left behind: a work keeps itself on a disk that all machines share, and knows when it is finished already.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from hyperdreambooth.errors import (
    DiskFull,
    HyperDreamBoothError,
    UserError,
    WorkError,
    is_out_of_memory,
    last_line,
    one_line,
)
from hyperdreambooth.progress import log

Task = TypeVar("Task")
News = TypeVar("News")

LOCAL = "local"
_MOST_LOSSES = 3  # of workers at one task, with no news between: it ends them; or in a row, before they have a place
_MOST_IN_ALL = 20  # of workers at one task, whatever the news: they may come to the same place and end there, each time
QUIET = {  # read when Ray is imported or started
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what it prints on standard output; dead workers are told of here
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it, a warning
}
"""Of Ray's environment, what is set unless the user did."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers are. Each has one CPU and one thread of arithmetic, or a GPU of its own besides.

    Attributes:
        workers: at most so many at once; those that the machines have no room for begin when others are done.
        address: "local", which starts them on this machine alone; "auto", the cluster that this machine is of; or
            HOST:PORT of its head.
        gpu: whether a worker has a GPU; None: where there is one.
    """

    workers: int
    address: str = LOCAL
    gpu: bool | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"got {self.workers} workers, expected 1 or more")
        if "://" in self.address:
            raise UserError(
                f"got the cluster {self.address}, expected auto or HOST:PORT: run the command on one of its machines, "
                "from elsewhere with ray job submit"
            )


def is_installed() -> bool:
    """Whether Ray is there."""
    return find_spec("ray") is not None


def scatter(
    open_work: Callable[[], Callable[[Task], Iterator[News]]], tasks: Sequence[Task], cluster: Cluster
) -> Generator[News]:
    """Do every task on a worker, and yield what the workers say of it, as it comes; stop at any moment.

    Args:
        open_work: called once in each worker, gives what does a task and says how far it is. It, the tasks and the
            news must be picklable, and its module be installed on all machines.
        tasks: each is done by one worker at a time, in order as far as workers are free.
        cluster: joined, and left at the end; one that this process has joined already is used as it is.

    Raises:
        UserError: Ray is not installed, or there is no such cluster (before any work).
        WorkError: several workers died at the same task, or could not start, one after the other.
        DiskFull: on every worker, one after the other.
        Whatever the work raises; other workers are stopped then, where they are. Errors of this package and a memory
            that ran out come at once, anything else when several workers have met with it at the same task.
    """
    with joined(cluster) as ray:
        yield from _Crew(ray, open_work, tasks, cluster)


@contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """Be of the cluster, and give its library; what is inside uses the same one. Raises UserError as `scatter`."""
    if not is_installed():
        raise UserError(
            "Ray is not installed, expected it for work on a cluster: pip install 'hyperdreambooth[cluster]'"
        )
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        yield ray
        return
    local = {"num_cpus": cluster.workers, "include_dashboard": False} if cluster.address == LOCAL else {}
    host, _, port = cluster.address.rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()  # Ray tries for minutes
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        raise UserError(
            f"no Ray cluster at {cluster.address} ({one_line(error)}): check the address, and that ray start ran there"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Worker:
    """Runs in a process of its own."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Iterator[Any]] | None = None

    def arrive(self) -> Iterator[Any]:
        """Nothing: that it ends says that the worker has a place."""
        yield from ()

    def do(self, open_work: Callable[[], Callable[[Any], Iterator[Any]]], task: Any) -> Iterator[Any]:
        # Opened here, not at the worker's start: what goes wrong comes back as the error that it is.
        self._work = self._work or open_work()
        yield from self._work(task)


@dataclass(eq=False)
class _Job:
    """One worker at one task, or on its way to the first."""

    worker: Any
    number: int | None  # of the task; None before it has a place on a machine, which may be never
    stream: Any  # of references to its news


class _Crew(Generic[Task, News]):
    """The workers and what is left for them.

    Ray could do a dead worker's call again by itself, but would skip as many news as it had seen of the first; a task
    that goes on where it was has fewer of them. So the call is made anew, here.
    """

    def __init__(
        self,
        ray: Any,
        open_work: Callable[[], Callable[[Task], Iterator[News]]],
        tasks: Sequence[Task],
        cluster: Cluster,
    ) -> None:
        there = ray.cluster_resources().get("GPU", 0) >= 1
        if cluster.gpu and not there:
            raise UserError("the cluster has no GPU, expected one for each worker: give --device cpu")
        gpus = int(there if cluster.gpu is None else cluster.gpu)
        self._ray, self._open_work, self._tasks = ray, open_work, tasks
        self._kind = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(_Worker)
        self._workers = min(cluster.workers, len(tasks))
        self._waiting = deque(range(len(tasks)))
        self._jobs: list[_Job] = []
        self._losses: Counter[int | None] = Counter()  # of workers by task, since news; before they have one, in a row
        self._in_all: Counter[int | None] = Counter()  # of workers by task
        self._full: Counter[int | None] = Counter()  # disks, by task

    def __iter__(self) -> Iterator[News]:
        errors = self._ray.exceptions
        try:
            for _ in range(self._workers):
                self._hire()
            while self._jobs and (self._waiting or any(job.number is not None for job in self._jobs)):
                job = self._next()
                try:
                    news = self._ray.get(next(job.stream))
                except StopIteration:
                    if job.number is None:  # it has arrived
                        del self._losses[None]
                    self._jobs.remove(job)
                    self._give(job.worker)
                except errors.RayTaskError as error:  # raised by the work
                    self._failed(job, error.cause)
                except errors.RayError as error:  # whatever else ends a worker
                    self._lost(job, error)
                else:
                    del self._losses[job.number]  # it gets on
                    yield news
        finally:
            for job in self._jobs:
                self._ray.kill(job.worker)

    def _hire(self) -> None:
        """Begin a worker. It gets a task when it has a place, so that none waits for a machine that is lost or full."""
        worker = self._kind.remote()
        self._jobs.append(_Job(worker, None, worker.arrive.remote()))

    def _give(self, worker: Any) -> None:
        """Give a worker the next task; without one, let it go: another may be waiting for its room."""
        if not self._waiting:
            self._ray.kill(worker)
            return
        number = self._waiting.popleft()
        self._jobs.append(_Job(worker, number, worker.do.remote(self._open_work, self._tasks[number])))

    def _next(self) -> _Job:
        """One that has news; it goes to the end of the row, so that all are heard."""
        (stream,), _ = self._ray.wait([job.stream for job in self._jobs], num_returns=1)
        job = next(job for job in self._jobs if job.stream is stream)
        self._jobs.remove(job)
        self._jobs.append(job)
        return job

    def _failed(self, job: _Job, cause: Exception) -> None:
        """What is raised on purpose, or for want of memory, would come again; the rest may be one machine's alone."""
        if isinstance(cause, DiskFull):
            self._left_out(job, cause)
        elif isinstance(cause, HyperDreamBoothError) or is_out_of_memory(cause) or self._ended_too_many(job):
            raise cause
        else:
            what = f"{type(cause).__name__}: {one_line(cause)}"
            log.warning("a worker failed (%s): another goes on with its task", what)
            self._hire()

    def _left_out(self, job: _Job, cause: DiskFull) -> None:
        """A full disk may be that machine's alone: its task goes to the others, or to a new one if they have ended.

        For a task no more of these are begun than there are machines.
        """
        self._put_back(job)
        self._full[job.number] += 1
        if not self._jobs and self._full[job.number] > len(self._ray.nodes()):
            raise cause
        log.warning("a worker is left out: %s", cause)
        if not self._jobs:
            self._hire()

    def _lost(self, job: _Job, error: Exception) -> None:
        if self._ended_too_many(job):
            if job.number is None:
                raise WorkError(
                    f"{_MOST_LOSSES} workers in a row could not start ({last_line(error)}): the same package must be "
                    "installed on every machine; see to Ray's logs, then run again; what is finished stays"
                ) from error
            raise WorkError(
                f"{self._in_all[job.number]} workers died at the same task ({one_line(error)}): see to the memory of "
                "the machines and to Ray's logs, then run again; what is finished stays"
            ) from error
        log.warning("a worker died (%s): another goes on with its task", type(error).__name__)
        self._hire()

    def _ended_too_many(self, job: _Job) -> bool:
        """Take the task back from a worker that has ended at it; whether it is the task that ends them."""
        self._put_back(job)
        self._losses[job.number] += 1
        self._in_all[job.number] += 1
        many = job.number is not None and self._in_all[job.number] == _MOST_IN_ALL
        return many or self._losses[job.number] == _MOST_LOSSES

    def _put_back(self, job: _Job) -> None:
        """The task is the next to be given; the worker, should it live after all, is ended."""
        self._jobs.remove(job)
        self._ray.kill(job.worker)
        if job.number is not None:
            self._waiting.appendleft(job.number)
