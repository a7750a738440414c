"""`table.md` and `table.csv`: the arms side by side, the verdicts, and all that is needed to quote or repeat them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..methods.registry import radii
from . import measures, statistics
from .arms import AVERAGES
from .judge import Judgement, Unit, base_title, title
from .outcomes import Outcome
from .results import Study


def markdown(study: Study) -> str:
    """The table for people."""
    plan = study.plan
    unit = study.judgements[0].unit
    parts = [
        f"# {plan.name}: " + ("does it help?" if plan.tuned else "a sweep"),
        "\n".join(f"* {item.sentence}" for item in study.judgements),
        _results(study, unit),
        _further(study),
        _tuning(study) if plan.tuned else "",
        _protocol(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(study: Study, unit: Unit) -> str:
    plan = study.plan
    judged = {item.arm: item for item in study.judgements}
    against = list(dict.fromkeys(base_title(plan, pair.base) for item in study.judgements for pair in item.pairs))
    word = f" ({unit.word})" if unit.word else ""
    head = ["arm", "tuned setting", "passes a step", "passes", "ms a step", "MiB", _metric(study) + word]
    head += [f"over {base}" for base in against]
    head += ["p (Holm)", "verdict"]
    rows = []
    for name, outcome in study.outcomes.items():
        item = judged.get(name)
        gains = {base_title(plan, pair.base): pair for pair in item.pairs} if item else {}
        rows.append(
            [
                arm_title(study, name),
                setting(outcome),
                _figure(passes_a_step(study, name), 2),
                _figure(total_passes(study, name), 0),
                _figure(milliseconds(study, name), 2),
                _figure(outcome.mean_of("peak_memory"), 0),
                _mean_and_spread(outcome.values, unit) + _diverged(outcome),
                *(_gain(gains[base], unit) if base in gains else "" for base in against),
                f"{item.decision.p:.3f}" if item and item.pairs and plan.tuned else "",
                item.decision.verdict if item else "",
            ]
        )
    time = plan.facts.get("time", "processor time with one thread")
    note = (
        f"Mean and standard deviation over {len(plan.final_seeds)} seeds, at the end of training, on "
        f"{plan.facts.get('judged on', 'the test split')}. Gains with 95 % intervals over seeds, and in brackets over "
        f"test examples. A step's time is {time}; memory is the peak of the whole process, or of the CUDA device where "
        "there is one."
    )
    return f"{table(head, rows)}\n\n{note}"


def _further(study: Study) -> str:
    names = _others_of(study)
    if not names:
        return ""
    rows = []
    for name, outcome in study.outcomes.items():
        rows.append([arm_title(study, name), *(_interval_of(outcome.others.get(key)) for key in names)])
    head = ["arm", *(measures.NAMES.get(name, name.replace("_", " ")) for name in names)]
    note = "From the same final models, with 95 % t intervals over seeds; no part of the verdict."
    return f"## Besides {study.plan.metric.replace('_', ' ')}\n\n{table(head, rows)}\n\n{note}"


def _others_of(study: Study) -> list[str]:
    """What there is besides the primary metric, in an order of its own: that of a results.json is the alphabet's."""
    found = {name for outcome in study.outcomes.values() for name in outcome.others}
    return [*sorted(found - measures.NAMES.keys()), *(name for name in measures.NAMES if name in found)]


def _tuning(study: Study) -> str:
    plan = study.plan
    head = ["arm", *(f"point {number + 1}" for number in range(len(plan.points)))]
    rows = []
    for arm in plan.arms:
        scores = study.choice.scores[arm.name]
        if arm.runs:
            chosen = study.choice.points[arm.name]
            rows.append([arm.name, *(_chosen(score, number == chosen) for number, score in enumerate(scores))])
    points = "; ".join(
        f"{number + 1}: learning rate {point.learning_rate(plan.learning_rate):g}, "
        f"{100 * point.share():.0f} % of the arm's longest"
        for number, point in enumerate(plan.points)
    )
    averaged = []
    for arm in plan.arms:
        if arm.kind == "averaged":
            candidates = [f"{variant} of {base}" for base in arm.bases for variant in AVERAGES]
            pairs = zip(candidates, study.choice.scores[arm.name], strict=True)
            averaged.append(f"{arm.name}: " + ", ".join(f"{name} {_figure(score, 4)}" for name, score in pairs))
    riding = sorted({argument for arm in plan.arms for argument in arm.choices})
    conservative = (
        f" {', '.join(riding)} ride{'s' if len(riding) == 1 else ''} on the same points, which is conservative for the "
        "arms that have to choose it."
        if riding
        else ""
    )
    text = (
        f"Mean {_metric(study)} on validation data over {len(plan.tuning_seeds)} seeds; the bold one was chosen. "
        f"{points}.{conservative}"
    )
    return "\n\n".join(["## Tuning", table(head, rows), text, *averaged])


def _protocol(study: Study) -> str:
    plan = study.plan
    lines = [f"* command: `{study.command}`", f"* date: {study.date}"]
    lines += [f"* {name}: {fact}" for name, fact in plan.facts.items() if plan.tuned or name != "tuned on"]
    lines.append(f"* deviations from the protocol: {'; '.join(plan.deviations) or 'none'}")
    if len(study.environments) > 1:
        lines.append("* the runs were made with different versions or machines, see the signature")
    lines.append(f"* signature: `{study.signature}`")
    return "## Protocol\n\n" + "\n".join(lines)


def csv_rows(study: Study) -> list[dict[str, Any]]:
    """One row for each arm, numbers in full."""
    judged: dict[str, Judgement] = {item.arm: item for item in study.judgements}
    others = _others_of(study)
    lengths = [name for name in radii() if any(name in outcome.arguments for outcome in study.outcomes.values())]
    keys = ("learning_rate", "max_steps", "num_train_epochs", *lengths, "average", "of")
    rows = []
    for name, outcome in study.outcomes.items():
        item = judged.get(name)
        row: dict[str, Any] = {
            "task": study.plan.name,
            "arm": name,
            "kind": outcome.kind,
            **{key: outcome.arguments.get(key, "") for key in keys},
            "seeds": len(outcome.scores),
            "diverged": outcome.diverged,
            "passes_a_step": passes_a_step(study, name),
            "passes": total_passes(study, name),
            "milliseconds_a_step": milliseconds(study, name),
            "peak_memory_mib": outcome.mean_of("peak_memory"),
            "metric": study.plan.metric,
            "mean": float(outcome.values.mean()),
            "standard_deviation": float(outcome.values.std(ddof=1)) if len(outcome.scores) > 1 else "",
            "verdict": item.decision.verdict if item else "",
            "p_holm": item.decision.p if item and study.plan.tuned else "",
            "detectable": item.detectable if item and study.plan.tuned else "",
        }
        for pair in item.pairs if item else []:
            row[f"gain_over_{pair.base}"] = pair.mean
            row[f"gain_over_{pair.base}_low"], row[f"gain_over_{pair.base}_high"] = pair.seed_interval
        for key in (name for name in others if name in outcome.others):
            values = outcome.others[key]
            known = [value for value in values if value is not None]
            row[key] = float(np.mean(known)) if len(known) == len(values) else None
        rows.append(row)
    return rows


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV; a column that a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def arm_title(study: Study, name: str) -> str:
    """An arm as people write it; base arms of several costs are told apart."""
    outcome = study.outcomes[name]
    if outcome.kind == "sharpness":
        return title(outcome)
    several = sum(arm.kind == outcome.kind for arm in study.plan.arms) > (2 if outcome.kind == "base" else 1)
    _, dash, cap = name.partition("-")
    return base_title(study.plan, name) + (f" ({cap})" if several and dash else "")


def setting(outcome: Outcome) -> str:
    """The tuned learning rate and length, and whose average it is."""
    arguments = outcome.arguments
    words = [f"lr {arguments['learning_rate']:g}"]
    if "max_steps" in arguments:
        words.append(f"{arguments['max_steps']} steps")
    else:
        words.append(f"{arguments['num_train_epochs']:g} epochs")
    if "average" in arguments:
        words.append(f"{arguments['average']} of {arguments['of']}")
    return ", ".join(words)


def passes_a_step(study: Study, name: str) -> float | None:
    """Passes of an optimizer step, as its final runs counted them."""
    return study.outcomes[name].mean_of("passes")


def total_passes(study: Study, name: str) -> float | None:
    """Passes of a whole final run, over the effective batch."""
    outcome = study.outcomes[name]
    steps, passes = outcome.mean_of("steps"), outcome.mean_of("passes")
    return None if steps is None or passes is None else steps * passes


def milliseconds(study: Study, name: str) -> float | None:
    """Time of an optimizer step."""
    plan, outcome = study.plan, study.outcomes[name]
    source = study.choice.averages.get(name, (name, ""))[0]
    seconds = plan.seconds.get(source)
    if seconds is None:
        seconds = outcome.mean_of("seconds_per_step")
    return None if seconds is None else 1000 * seconds


def _metric(study: Study) -> str:
    return study.plan.metric.replace("_", " ")


def _mean_and_spread(values: np.ndarray, unit: Unit) -> str:
    values = unit.factor * values
    if not np.all(np.isfinite(values)):
        return "not finite"
    spread = f" ± {values.std(ddof=1):.{unit.decimals}f}" if len(values) > 1 else ""
    return f"{values.mean():.{unit.decimals}f}{spread}"


def _diverged(outcome: Outcome) -> str:
    return f" (diverged: {outcome.diverged} of {len(outcome.runs)})" if outcome.diverged else ""


def _gain(pair: Any, unit: Unit) -> str:
    examples = f" [{unit.interval(pair.example_interval)}]" if pair.example_interval else ""
    return f"{unit.text(pair.mean)} ({unit.interval(pair.seed_interval)}){examples}"


def _interval_of(values: list[float | None] | None) -> str:
    known = [value for value in values or () if value is not None]
    if not known or len(known) != len(values or ()):
        return "–"
    low, high = statistics.seed_interval(np.array(known, dtype=np.float64))
    mean = f"{np.mean(known):.4g}"
    return f"{mean} ({low:.4g} .. {high:.4g})" if np.isfinite(low) else mean


def _chosen(score: float | None, chosen: bool) -> str:
    text = "diverged" if score is None else f"{score:.4f}"
    return f"**{text}**" if chosen else text


def _figure(value: float | None, decimals: int) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:,.{decimals}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
