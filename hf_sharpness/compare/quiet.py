"""Silence for the runs of a study: a bar shows how far it is, and each run would say the same again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def quiet_runs() -> Iterator[None]:
    """Inside, warnings and what transformers and this package say of a training are not shown; errors are."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
