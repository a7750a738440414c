"""From the question to the plan: arms, their measured costs and base arms, points and seeds; and what it will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from . import budget as budgets
from .arms import Arm, sharpness_arms, swept, with_base_arms
from .budget import duration, expected_seconds, power_in_words
from .cost import over_the_training
from .errors import CompareError
from .plan import Plan, final_seeds, protocol_deviations, tuning_seeds
from .points import RATE_FACTOR, SHORTEST, UNTUNED, sobol_points
from .subject import NO_TEST, Subject


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says of the protocol.

    Args:
        arms: `--arms`.
        choices: Sharpness arguments with the values tuning chooses from.
        trials: Tuning points; 0: a sweep, without tuning and verdict.
        tuning_seeds: Seeds of each.
        seeds: Final seeds.
        budget: Seconds for everything; None: no limit.
        margin: Of equivalence; None: the default.
        jobs: Runs at the same time.
    """

    arms: str | None
    choices: Mapping[str, Sequence[Any]]
    trials: int
    tuning_seeds: int
    seeds: int
    budget: float | None
    margin: float | None
    jobs: int = 1

    def question(self) -> dict[str, Any]:
        """What identifies the study, in JSON's types."""
        content = dataclasses.asdict(self)
        content.pop("jobs")
        return {**content, "choices": {key: list(values) for key, values in self.choices.items()}}


def check_options(options: Options) -> None:
    """Refuse numbers that make no study.

    Raises:
        CompareError: Names the option, its value and the remedy.
    """
    for name, least in (("trials", 0), ("tuning_seeds", 1), ("seeds", 2), ("jobs", 1)):
        value = getattr(options, name)
        if value < least:
            raise CompareError(f"--{name} {value}: must be at least {least}")
    if options.trials == 0 and options.budget is not None:
        raise CompareError("--budget: a sweep (--trials 0) has no tuning to cut; ask for fewer settings or --seeds")
    if options.seeds > 1000 or options.tuning_seeds > 1000:
        raise CompareError("--seeds, --tuning_seeds: at most 1000")
    if options.margin is not None and options.margin <= 0:
        raise CompareError(f"--margin {options.margin}: must be greater than 0")


def make_plan(subject: Subject, options: Options) -> Plan:
    """Measure the arms' costs and fix every run of the study.

    Raises:
        CompareError: The arms are not valid, or the study does not fit the budget.
    """
    own = subject.own()
    asked = sharpness_arms(options.arms, options.choices, own.sharpness, own.base_optim)
    if options.trials == 0:
        asked = swept(asked)
    plain = Arm("base", "base", {"optim": own.base_optim})
    subject.check([plain, *asked])
    costs, scale = subject.costs([plain, *asked])
    steps = own.length.value * (1 if own.length.argument == "max_steps" else scale.steps_per_epoch)
    total = max(1, round(steps))
    costs |= {arm.name: over_the_training(costs[arm.name], costs["base"], arm, total, subject.decay) for arm in asked}
    priced = [dataclasses.replace(arm, cost=round(costs[arm.name].passes, 2)) for arm in asked]
    arms = with_base_arms(priced, own.base_optim, subject.averaging)
    seconds = {arm.name: costs.get(arm.name, costs["base"]).seconds for arm in arms if arm.runs}
    more = [] if subject.averaging else ["no arm with averaged weights"]
    facts = subject.facts()
    if NO_TEST in facts["judged on"]:
        more.append(f"{NO_TEST}: judged on the data that it was tuned on")

    def build(trials: int, seeds: int, cut: Sequence[str] = ()) -> Plan:
        return Plan(
            name=subject.name,
            mode=subject.mode,
            question={**subject.question(), "options": options.question()},
            metric=subject.metric,
            greater_is_better=subject.greater_is_better,
            margin=options.margin,
            base_optim=own.base_optim,
            learning_rate=own.learning_rate,
            length=own.length,
            arms=tuple(arms),
            points=tuple(sobol_points(trials, arms)) if trials else (UNTUNED,),
            tuning_seeds=tuning_seeds(options.tuning_seeds if trials else 0),
            final_seeds=final_seeds(seeds),
            facts=facts,
            deviations=protocol_deviations(trials, options.tuning_seeds, seeds, [*more, *cut]),
            seconds=seconds,
            steps=steps,
            overhead=scale.overhead,
        )

    if options.budget is None:
        return build(options.trials, options.seeds)
    fitted = budgets.fit(build, options.trials, options.seeds, options.budget, options.jobs)
    plan = fitted.plan
    return build(len(plan.points), len(plan.final_seeds), fitted.cut)


def describe(plan: Plan, jobs: int) -> str:
    """What will run and for how long, before it does."""
    tuning, running = plan.tuning_runs(), [arm for arm in plan.arms if arm.runs]
    finals = len(running) * len(plan.final_seeds)
    seconds = expected_seconds(plan)
    lines = [
        f"{plan.name}: {len(tuning)} tuning runs and {finals} final runs, about {duration(seconds)} of processor time"
        + (f", {duration(seconds / jobs)} with {jobs} at a time" if jobs > 1 else ""),
    ]
    for arm in plan.arms:
        if not arm.runs:
            lines.append(f"  {arm.name}: read off the runs of {' and '.join(arm.bases)}")
            continue
        chosen = "".join(f", {name} from {list(values)}" for name, values in arm.choices.items())
        step = 1000 * plan.seconds[arm.name]
        against = f", against {', '.join(arm.bases)}" if arm.bases else ""
        lines.append(
            f"  {arm.name}: {arm.cost:.2f} passes and {step:.1f} ms a step, at most "
            f"{plan.steps * arm.cap:,.0f} steps{chosen}{against}"
        )
    if not plan.tuned:
        lines.append(f"  a sweep of {len(plan.final_seeds)} seeds: nothing is tuned, and there is no verdict")
        return "\n".join(lines)
    lines.append(
        f"  tuning: {len(plan.points)} Sobol points (learning rate within a factor {RATE_FACTOR:g} of "
        f"{plan.learning_rate:g}, length {100 * SHORTEST:.0f} - 100 % of the arm's longest), "
        f"{len(plan.tuning_seeds)} seeds each, on {plan.facts.get('tuned on', 'validation data')}"
    )
    judged = plan.facts.get("judged on", "the test split")
    arms = len(plan.sharpness_arms)
    lines.append(
        f"  verdict: {plan.metric} on {judged} at the end of training; {power_in_words(len(plan.final_seeds), arms)}"
    )
    lines.append(f"  deviations from the protocol: {'; '.join(plan.deviations) or 'none'}")
    return "\n".join(lines)
