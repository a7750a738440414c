"""How a training speaks to the user: on one process for all, above the progress bar."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm
from transformers.utils import logging


def say(line: str) -> None:
    """Print a line to stderr, unless transformers' verbosity lets nothing but errors through."""
    if logging.get_verbosity() <= logging.WARNING:
        tqdm.write(line, file=sys.stderr)
