"""diffusers and transformers, kept quiet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and advice off the terminal while their files are read or written."""
    both = transformers_logging, diffusers_logging
    shown, levels = [one for one in both if one.is_progress_bar_enabled()], [one.get_verbosity() for one in both]
    for logging in both:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()
        for logging, level in zip(both, levels, strict=True):
            logging.set_verbosity(level)
