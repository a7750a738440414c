"""`hf-sharpness compare`: the command line.

hf-sharpness compare RECIPE [--arms base,METHOD,...] [--sam_rho .01,.02,.05] [--any_training_argument VALUE]
hf-sharpness compare --script train.py --metric eval_accuracy [...] -- SCRIPT ARGUMENTS
hf-sharpness compare --report FOLDER [FOLDER ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..tasks.errors import RecipeError
from ..tasks.flags import apply_flags, load_named, parse_training_flags
from ..tasks.terminal import quiet
from ..tasks.yaml12 import parse_yaml
from . import across, report, results
from .arms import OWN_METHODS, own_arguments
from .budget import parse_duration
from .errors import CompareError
from .execution import GRACE, Execution
from .plan import DEFAULT_SEEDS, DEFAULT_TRIALS, DEFAULT_TUNING_SEEDS, Plan
from .planning import Options, check_options, describe, make_plan
from .recipe_runs import RecipeSubject
from .script_runs import ScriptSubject
from .subject import Subject
from .work import default_jobs, left, work, work_in_processes

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 2 for an error the user can put right, 130 after Ctrl-C.

    Args:
        argv: Arguments after `compare`. Default None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _compare(arguments)
    except RecipeError as error:
        print(f"hf-sharpness: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing finished is lost, run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> Any:
        raise CompareError(f"compare: {message}; see `hf-sharpness compare --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hf-sharpness compare",
        usage="hf-sharpness compare RECIPE [options] [--data.KEY VALUE] [--any_training_argument VALUE]\n"
        "       hf-sharpness compare --script SCRIPT --metric NAME [options] -- SCRIPT ARGUMENTS\n"
        "       hf-sharpness compare --report FOLDER [FOLDER ...]",
        description="Does a sharpness-aware method help on this task? Every arm is tuned on validation data and judged "
        "by paired final runs against the base optimizer at equal steps, at equal passes and with averaged weights.",
        epilog="A sharpness argument may have several values, as in --sam_rho .01,.02,.05: tuning chooses one. "
        "With --trials 0 nothing is tuned: every value is an arm of its own, at the recipe's learning rate and length, "
        "and there is no verdict. "
        "docs/compare.md describes protocol, verdicts and files.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--script", metavar="SCRIPT", help="compare on a script written for transformers' Trainer instead")
    add("--report", nargs="+", metavar="FOLDER", help="make tables and pictures again from results.json; merge several")
    arms = ",".join(["base", *OWN_METHODS])
    add("--arms", help=f"{arms} (the default), or a YAML file: a name for each arm, with its arguments")
    add("--metric", help="the primary metric. Default: the recipe's first; a script has none")
    add("--lower_is_better", action="store_true", help="of a script's metric. A loss is known to be so")
    add(
        "--trials",
        type=int,
        default=DEFAULT_TRIALS,
        help="tuning points of every arm (%(default)s); 0: a sweep, see below",
    )
    add("--tuning_seeds", type=int, default=DEFAULT_TUNING_SEEDS, help="seeds of each point (%(default)s)")
    add("--seeds", type=int, default=DEFAULT_SEEDS, help="final seeds, paired across arms (%(default)s)")
    add("--margin", type=float, help="effects within it count as none, in points or the metric's unit (1 point)")
    add("--budget", help="2h, 90m: cut tuning points and seeds until the study fits")
    add("--output_dir", metavar="FOLDER", help="where results go. Default: comparisons/NAME")
    add("--storage", metavar="URL", help="the database, for many machines. Default: study.db in the output folder")
    add("--jobs", type=int, help="runs at the same time. Default: one, or one for each CUDA device")
    add("--one", action="store_true", help="make one run and stop, for schedulers")
    add("--dry_run", action="store_true", help="say what would run and for how long, and stop")
    add("--grace", type=int, default=GRACE, help="seconds without a heartbeat until a run counts as dead (%(default)s)")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _compare(arguments: list[str]) -> int:
    own, script_arguments = _split(arguments)
    parser = _parser()
    if "-h" in own or "--help" in own:
        parser.print_help()
        return 0
    recipe = own.pop(0) if own and not own[0].startswith("-") else None
    given, rest = parser.parse_known_args(own)
    quiet()
    if given.report:
        return _report(given)
    choices, rest = _choices(rest)
    subject = _subject(recipe, given, rest, script_arguments)
    options = Options(
        given.arms,
        choices,
        given.trials,
        given.tuning_seeds,
        given.seeds,
        None if given.budget is None else parse_duration(given.budget),
        given.margin,
        default_jobs() if given.jobs is None else given.jobs,
    )
    check_options(options)
    if given.grace < 4:
        raise CompareError(f"--grace {given.grace}: must be at least 4 seconds")
    command = shlex.join(["hf-sharpness", "compare", *(word for word in arguments if word != "--worker")])
    folder = Path(given.output_dir or Path("comparisons") / subject.name)
    question = {**subject.question(), "options": options.question()}
    finished_elsewhere = _same_question(folder, question)
    name = f"{subject.name}-{_digest(question)}"
    if given.dry_run and finished_elsewhere is None:
        print(describe(make_plan(subject, options), options.jobs))
        return 0

    folder.mkdir(parents=True, exist_ok=True)
    url = given.storage or f"sqlite:///{folder.resolve() / 'study.db'}"
    execution = _open(url, name, subject, given.grace)
    stored = Plan.from_json(finished_elsewhere["plan"]) if finished_elsewhere else None
    plan = execution.stored_plan() or stored
    if plan is None:
        plan = make_plan(subject, options)
    execution.begin(plan)
    if finished_elsewhere:
        runs = results.records_of(finished_elsewhere)
        values = {key: (run, record, _value(plan, run.stage, record)) for key, (run, record) in runs.items()}
        execution.take_over(values)
    if given.worker:
        work(execution, subject, lambda: None, show=False)
        return 0
    print(describe(plan, options.jobs), flush=True)
    to_do = left(execution)
    print(f"  {to_do} runs are left, of which nothing finished is made again\n", flush=True)
    if given.dry_run:
        return 0

    def save() -> None:
        results.write(folder, plan, execution.finished(), command)

    if options.jobs > 1 and not given.one:
        done = work_in_processes(execution, arguments, options.jobs, save)
    else:
        done = work(execution, subject, save, most=1 if given.one else None)
    study = results.write(folder, plan, execution.finished(), command)
    if not done or study is None:
        print(f"{left(execution)} runs are left; run the same command again to go on")
        return 0
    report.write(study, folder)
    print(report.summary([study], folder))
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and those of the script after `--`."""
    if "--" not in arguments:
        return list(arguments), []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _choices(rest: list[str]) -> tuple[dict[str, tuple[Any, ...]], list[str]]:
    """`--sam_rho .01,.02` and the like, and what is left."""
    choices: dict[str, tuple[Any, ...]] = {}
    left_over: list[str] = []
    words = iter(rest)
    for word in words:
        name, equals, _ = word.removeprefix("--").replace("-", "_").partition("=")
        if not word.startswith("--") or name not in own_arguments():
            left_over.append(word)
            continue
        text = word.partition("=")[2] if equals else next(words, "")
        if not text or text.startswith("--"):
            raise CompareError(f"--{name}: a value is missing")
        try:
            choices[name] = tuple(parse_yaml(part) for part in text.split(","))
        except (yaml.YAMLError, ValueError):
            raise CompareError(f"--{name} {text}: write values with commas between them, as in .01,.02") from None
    return choices, left_over


def _subject(
    recipe_name: str | None, given: argparse.Namespace, rest: list[str], script_arguments: list[str]
) -> Subject:
    if given.script is not None:
        if recipe_name is not None:
            raise CompareError(
                f"--script {given.script}: '{recipe_name}' is left over; script arguments stand after --"
            )
        flags = parse_training_flags(rest, "compare")
        return ScriptSubject(given.script, script_arguments, given.metric, given.lower_is_better, flags)
    if recipe_name is None:
        raise CompareError(
            "compare: name a RECIPE first (`hf-sharpness recipes` lists the bundled ones), or a --script"
        )
    if script_arguments:
        raise CompareError("compare: arguments after -- belong to a --script; a recipe's stand before it")
    recipe = load_named(recipe_name)
    apply_flags(recipe, rest, "compare")
    return RecipeSubject(recipe, given.metric)


def _same_question(folder: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """The `results.json` of the folder, if there is one; it must be about this question."""
    if not (folder / results.RESULTS).exists():
        return None
    content = results.read(folder)
    before, now = content["plan"]["question"], json.loads(json.dumps(question))
    if before != now:
        raise CompareError(
            f"--output_dir {folder}: holds another study ({_difference(before, now)}); name another folder, or ask the "
            "same question to go on. Seeds or points added to a study make a new one"
        )
    return content


def _difference(before: Any, now: Any, path: str = "") -> str:
    """The first entry in which two questions differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    return f"{path} was {before!r} and is {now!r}"


def _digest(question: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]


def _open(url: str, name: str, subject: Subject, grace: int) -> Execution:
    try:
        return Execution(url, name, subject.greater_is_better, max(1, grace // 4), grace)
    except Exception as error:  # the database's driver has exceptions of its own
        text = " ".join(str(error).split())[:300]
        raise CompareError(f"--storage {url}: cannot be opened: {type(error).__name__}: {text}") from error


def _value(plan: Plan, stage: str, record: dict[str, Any]) -> float | None:
    judged = (record.get("test") or record["eval"]) if stage == "final" else record["eval"]
    return judged.get(plan.metric)


def _report(given: argparse.Namespace) -> int:
    studies = []
    for name in given.report:
        folder = Path(name)
        study = results.load(folder)
        report.write(study, folder)
        studies.append(study)
    if len(studies) == 1:
        print(report.summary(studies, Path(given.report[0])))
        return 0
    folder = Path(given.output_dir or "comparisons")
    folder.mkdir(parents=True, exist_ok=True)
    text = across.markdown(studies)
    (folder / "across.md").write_text(text, encoding="utf-8")
    rows = [row for study in studies for row in report.tables.csv_rows(study)]
    (folder / "across.csv").write_text(report.tables.csv_text(rows), encoding="utf-8")
    print(text)
    print(f"written to {os.path.join(folder, 'across.md')} and across.csv\n")
    for study in studies:
        for item in study.judgements:
            print(f"{study.plan.name}: {item.sentence}")
    return 0
