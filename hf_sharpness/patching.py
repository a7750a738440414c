"""The name by which other tools, and processes spawned by older versions, know ``install``."""

from .run.classes import install as install
