"""Times arms that take turns, so that a machine whose speed drifts treats all alike."""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from .arms import Arm

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Clock = Callable[[], float]


def clock_for(device: torch.device) -> tuple[Clock, str]:
    """Processor time on a CPU, where others may compute too; time on the clock, after all work, on an accelerator."""
    if device.type == "cpu":
        return time.process_time, "processor time"

    def wall() -> float:
        torch.get_device_module(device).synchronize(device)
        return time.perf_counter()

    return wall, "time on the clock"


def fresh_pages() -> int:
    """How many pages of memory this process has got from the system without a file (0 where that is not told)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


@dataclasses.dataclass
class Timed:
    """An arm's times.

    Attributes:
        seconds: of each round.
        ratios: to the floor of the same round.
        pages: of memory that a step has got anew from the system, in each round.
    """

    seconds: list[float]
    ratios: list[float]
    pages: list[float]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios) if self.ratios else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def take_turns(arms: Sequence[Arm], rounds: int, clock: Clock, warm_up: int = 2, steps: int = 1) -> dict[str, Timed]:
    """Time steps of all arms, in every round in another order.

    A floor is stepped twice in a round, and counts with the mean of the two. Ctrl-C keeps the rounds that are over.

    Args:
        arms: their floors among them.
        rounds: how many are timed.
        clock: returns seconds.
        warm_up: rounds before those.
        steps: how many an arm makes in its turn; what is counted is their mean. Of several the host runs ahead of an
            accelerator, as in a training.
    """
    floors = {arm.floor for arm in arms}
    order = [arm for arm in arms for _ in range(2 if arm.name in floors else 1)]
    shuffle = random.Random(0).shuffle
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    pages: dict[str, list[float]] = {arm.name: [] for arm in arms}
    turns = tqdm(range(-warm_up, rounds), desc="rounds", disable=None)
    try:
        for turn in turns:
            shuffle(order)
            taken: dict[str, list[tuple[float, float]]] = {}
            for arm in order:
                before, start = fresh_pages(), clock()
                for _ in range(steps):
                    arm.step()
                taken.setdefault(arm.name, []).append(((clock() - start) / steps, (fresh_pages() - before) / steps))
            if turn >= 0:
                for name, found in taken.items():
                    for series, values in zip((seconds, pages), zip(*found, strict=True), strict=True):
                        series[name].append(statistics.mean(values))
    except KeyboardInterrupt:
        turns.close()
        if not seconds[arms[0].name]:
            raise
        print(f"stopped: {len(seconds[arms[0].name])} rounds instead of {rounds}", file=sys.stderr)
    return {
        arm.name: Timed(
            seconds[arm.name],
            [t / f for t, f in zip(seconds[arm.name], seconds[arm.floor], strict=True)] if arm.floor else [],
            pages[arm.name],
        )
        for arm in arms
    }
