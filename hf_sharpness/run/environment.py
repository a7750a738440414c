"""What the processes that a program starts anew find in their environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

REPORTS = "HF_SHARPNESS_REPORTS"
"""Names the folder where Trainers report their steps."""
SETTINGS = "HF_SHARPNESS_SET"
"""What `--set` gave, as a JSON object of texts."""
STARTUP = str(Path(__file__).parent / "startup")
"""A folder with nothing but a sitecustomize.py."""


def prepare(settings: dict[str, str]) -> None:
    """Have every Python that is started from now on get the classes and the settings."""
    if settings:
        os.environ[SETTINGS] = json.dumps({**given_settings(), **settings})
    path = os.environ.get("PYTHONPATH", "")
    if STARTUP not in path.split(os.pathsep):
        # No empty entry, which would be the current folder.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STARTUP, path)))


def given_settings() -> dict[str, str]:
    """Argument -> text, as `--set` gave them to this process or to one that started it."""
    return json.loads(os.environ.get(SETTINGS, "{}"))
