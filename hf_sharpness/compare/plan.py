"""The plan of a study: every run of it, known before the first one begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .arms import Arm
from .points import Point

FIRST_TUNING_SEED = 1000
TUNING, FINAL = "tuning", "final"
DEFAULT_TRIALS, DEFAULT_TUNING_SEEDS, DEFAULT_SEEDS = 6, 2, 8


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One training of the study."""

    stage: str
    arm: str
    point: int
    seed: int

    @property
    def key(self) -> str:
        """Its name in the storage."""
        return f"{self.stage}/{self.arm}/{self.point}/{self.seed}"


@dataclasses.dataclass(frozen=True)
class Length:
    """The training length of the recipe or script: `max_steps` or `num_train_epochs`, and its value."""

    argument: str
    value: float

    def times(self, factor: float) -> dict[str, Any]:
        """The argument for a training that is `factor` times as long."""
        value = self.value * factor
        return {self.argument: max(1, round(value)) if self.argument == "max_steps" else round(value, 3)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first run.

    Args:
        name: Of the recipe or script.
        mode: `recipe` or `script`.
        question: What was asked, in JSON's types: the recipe's content or the script with its arguments, and the
            options. Another question is another study.
        metric: The primary metric, as the recipe or the script names it.
        greater_is_better: Its direction.
        margin: Effects within it count as none: in points for a metric from 0 to 1, else in the metric's unit. None:
            a point, or a hundredth of the base arm's mean.
        base_optim: The base optimizer.
        learning_rate: The recipe's own.
        length: The recipe's own.
        arms: All arms.
        points: What tuning tries.
        tuning_seeds: Seeds of the tuning runs.
        final_seeds: Seeds of the final runs; disjoint from the tuning seeds.
        facts: What a reader must know of data and validation: words by name.
        deviations: How the study differs from the protocol's defaults, in words.
        seconds: Arm -> measured processor seconds of an optimizer step.
        steps: Optimizer steps of the recipe's own length.
        overhead: Seconds that a run takes besides its steps.
    """

    name: str
    mode: str
    question: dict[str, Any]
    metric: str
    greater_is_better: bool
    margin: float | None
    base_optim: str
    learning_rate: float
    length: Length
    arms: tuple[Arm, ...]
    points: tuple[Point, ...]
    tuning_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    steps: float = 0.0
    overhead: float = 0.0

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def tuned(self) -> bool:
        """Whether arms are tuned; a sweep shows the recipe's own setting, and no verdict."""
        return bool(self.tuning_seeds)

    @property
    def sharpness_arms(self) -> list[Arm]:
        """The arms that are asked about."""
        return [arm for arm in self.arms if arm.kind == "sharpness"]

    def tuning_runs(self) -> list[Run]:
        """The tuning runs, the arms taking turns."""
        running = [arm.name for arm in self.arms if arm.runs]
        return [
            Run(TUNING, arm, point, seed)
            for point in range(len(self.points))
            for seed in self.tuning_seeds
            for arm in running
        ]

    def final_runs(self, chosen: Mapping[str, int]) -> list[Run]:
        """The final runs, the arms taking turns, once every arm's point has been chosen."""
        running = [arm.name for arm in self.arms if arm.runs]
        return [Run(FINAL, arm, chosen[arm], seed) for seed in self.final_seeds for arm in running]

    def arguments(self, arm_name: str, point_number: int) -> dict[str, Any]:
        """The training arguments of an arm at a point, as far as they differ from the recipe's."""
        arm, point = self.arm(arm_name), self.points[point_number]
        return {
            **arm.arguments,
            **point.chosen(arm),
            "learning_rate": point.learning_rate(self.learning_rate),
            **self.length.times(arm.cap * point.share()),
        }

    def expected_seconds(self, run: Run) -> float:
        """How long a run is expected to take on one thread."""
        arm = self.arm(run.arm)
        steps = self.steps * arm.cap * self.points[run.point].share()
        return steps * self.seconds.get(run.arm, 0.0) + self.overhead

    def to_json(self) -> dict[str, Any]:
        """The plan in JSON's types; `Plan.from_json` reads it back."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=dict))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        arms = [
            Arm(
                **{
                    **arm,
                    "bases": tuple(arm["bases"]),
                    "choices": {argument: tuple(values) for argument, values in arm["choices"].items()},
                }
            )
            for arm in content["arms"]
        ]
        return cls(
            **{
                **content,
                "length": Length(**content["length"]),
                "arms": tuple(arms),
                "points": tuple(Point(**point) for point in content["points"]),
                "tuning_seeds": tuple(content["tuning_seeds"]),
                "final_seeds": tuple(content["final_seeds"]),
                "deviations": tuple(content["deviations"]),
            }
        )


def tuning_seeds(count: int) -> tuple[int, ...]:
    """Seeds of tuning runs."""
    return tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count))


def final_seeds(count: int) -> tuple[int, ...]:
    """Seeds of final runs: none of them a tuning seed."""
    if count > FIRST_TUNING_SEED:
        raise ValueError(f"{count} final seeds would meet the tuning seeds, which begin at {FIRST_TUNING_SEED}")
    return tuple(range(count))


def protocol_deviations(
    trials: int, tuning_seed_count: int, seed_count: int, more: Sequence[str] = ()
) -> tuple[str, ...]:
    """In words, what differs from six points, two tuning seeds and eight final seeds; `more` comes after."""
    found = []
    if trials == 0:
        found.append(
            "a sweep without a verdict: nothing is tuned, every arm has the recipe's own learning rate and length"
        )
    elif trials != DEFAULT_TRIALS:
        found.append(f"{trials} tuning points instead of {DEFAULT_TRIALS}")
    if trials and tuning_seed_count != DEFAULT_TUNING_SEEDS:
        found.append(f"{tuning_seed_count} tuning seeds instead of {DEFAULT_TUNING_SEEDS}")
    if seed_count != DEFAULT_SEEDS:
        found.append(f"{seed_count} final seeds instead of {DEFAULT_SEEDS}")
    return (*found, *more)
