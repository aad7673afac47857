"""The faces of many people, found and cut by as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.errors import BadPicture, WorkError
from hyperdreambooth.faces.boxes import is_cropped
from hyperdreambooth.faces.finding import Detector
from hyperdreambooth.faces.framing import crop_face
from hyperdreambooth.faces.reading import read_encoded, read_picture
from hyperdreambooth.folders import Source

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_EACH = 16  # at least, for a process to be worth its start of seconds
_AHEAD = 4  # tasks that wait for each process: enough to keep all of them busy, little to hold in memory
# What a picture is called in notes, and where it is, or itself, or why there is none.
_Named = tuple[str, Path | bytes | BadPicture]


@dataclass(frozen=True)
class CutFaces:
    """A person's faces in FFHQ framing.

    Attributes:
        pictures: (V, 3, size, size) uint8.
        tried: how many of the person's pictures were read, those left out included.
        notes: on these, for a person to read.
    """

    pictures: Tensor
    tried: int
    notes: tuple[str, ...]


def cut_people(
    people: Mapping[str, Sequence[Source]],
    size: int,
    most: int | None,
    processes: int | None = None,
    detector: Detector | None = None,
) -> Iterator[tuple[str, CutFaces]]:
    """Find and cut everybody's faces, one person after the other, in order.

    A picture in which no face is found is left out, as one that cannot be read is; of small squares, which are crops
    already, the centre is taken.

    Args:
        people: each one's pictures.
        size: side of the faces in pixels.
        most: V at most, the first ones of use; None takes all.
        processes: that share the people; None is as many as there are cores, or none beside this one for a few people.
        detector: what finds faces, and can be sent to processes; None is OpenCV's cascades.

    Raises:
        WorkError: a process died.
    """
    tasks = (tuple(map(_named, pictures)) for pictures in people.values())
    cut = in_order(
        partial(_cut, size=size, most=most, detector=detector),
        tasks,
        enough_for(len(people)) if processes is None else processes,
    )
    for name, (pictures, tried, notes) in zip(people, cut, strict=True):
        yield name, CutFaces(torch.from_numpy(pictures), tried, notes)


def enough_for(tasks: int) -> int:
    """How many processes are worth starting for so many tasks of a fraction of a second; 1 is this one alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, tasks // _TASKS_EACH))


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    """The results of all tasks, in order, by so many processes; 1 is this one. Tasks are fetched as they are needed.

    Raises:
        WorkError: a process died.
    """
    if processes == 1:
        yield from map(work, tasks)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads, or with a GPU, may hang
    waiting = deque[Future[Result]]()
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_one_thread) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkError("a process that finds faces died, perhaps for want of memory: run again") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    """The processes share the cores between them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _named(source: Source) -> _Named:
    try:
        return str(source), source if isinstance(source, Path) else source.fetch()
    except BadPicture as error:
        return str(source), error


def _cut(
    pictures: Sequence[_Named], size: int, most: int | None, detector: Detector | None
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """One person's faces (V, 3, size, size) uint8, the pictures read, and notes. An array, which is handed on whole."""
    faces, notes, tried = list[Tensor](), list[str](), 0
    for name, where in pictures:
        if len(faces) == most:
            break
        tried += 1
        try:
            if isinstance(where, BadPicture):
                raise where
            picture = read_picture(where) if isinstance(where, Path) else read_encoded(where, name)
            crop = crop_face(picture, size, detector)
            if crop.box is None and not is_cropped(picture.shape[2], picture.shape[1]):
                raise BadPicture(
                    f"no face was found in {name}, expected one: take another picture, or another --detector"
                )
        except BadPicture as error:  # one of a thousand is no reason to stop
            notes.append(f"left out: {error}")
            continue
        notes += [] if crop.note is None else [f"{name}: {crop.note}"]
        faces.append((crop.picture * 255).round().byte())
    together = torch.stack(faces) if faces else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return together.numpy(), tried, tuple(notes)
