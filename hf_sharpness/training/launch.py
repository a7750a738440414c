"""How a training was launched: whether its processes know of each other."""

from __future__ import annotations

import logging
import os
from typing import Any

log = logging.getLogger(__name__)


def warn_of_lone_processes(args: Any) -> None:
    """Warn, in the first of them, where processes were started together and each trains by itself.

    transformers takes the ranks of torchrun for single processes where it finds no accelerator and is not told to use
    the CPU.
    """
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks in ("", "1") or args.world_size != 1 or os.environ.get("RANK", "0") != "0":
        return
    log.warning(
        "%s processes were started, but each trains by itself, on all of the data and into the same output_dir: "
        "transformers found no accelerator. Pass --use_cpu (use_cpu=True) to train together on CPUs",
        ranks,
    )
