"""One run of a script, in a process of its own, started by `hf-sharpness run` and watched by `probe`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..arguments import TrainingArguments
from ..methods import METHODS
from ..tasks.errors import first_line, nearest
from .arms import Arm, own_arguments, settings_of
from .cost import STEPS, WARM_UP, Cost, Scale, cost_of, in_every_step
from .errors import CompareError
from .packing import number
from .plan import Length
from .probe import TEST_PREFIXES, WISH
from .subject import NO_TEST, Own

_QUIET = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "push_to_hub": False,
    "disable_tqdm": True,
}
_LAST_LINES = 12


class ScriptSubject:
    """A script to compare on.

    Args:
        script: Its path.
        script_arguments: Its arguments, the same in every run.
        metric: The primary metric as the script reports it, `eval_accuracy` for instance.
        lower_is_better: Its direction; a loss is known to be better when lower.
        given: Training arguments from the command line, set in every run.

    Raises:
        CompareError: No such script, or no metric.
    """

    mode = "script"
    averaging = True

    def __init__(
        self,
        script: str,
        script_arguments: Sequence[str],
        metric: str | None,
        lower_is_better: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        if not Path(script).is_file():
            raise CompareError(f"--script {script}: no such file")
        if metric is None:
            raise CompareError("--script needs --metric, as the script reports it: --metric eval_accuracy")
        self.script, self.script_arguments, self.given = script, list(script_arguments), dict(given or {})
        self.name = Path(script).stem
        self.metric = _bare(metric)
        self.greater_is_better = not (lower_is_better or "loss" in self.metric or "perplexity" in self.metric)
        self._first: dict[str, Any] | None = None

    def own(self) -> Own:
        """What the script does by itself: from a run that is stopped after a few steps."""
        own = self._probe()["own"]
        length = Length("num_train_epochs", float(own["num_train_epochs"]))
        if own["max_steps"] > 0:
            length = Length("max_steps", float(own["max_steps"]))
        base = own["base_optim"] if own["optim"] in METHODS else own["optim"]
        sharpness = {name: value for name, value in self.given.items() if name in own_arguments()}
        return Own(float(own["learning_rate"]), length, base, sharpness)

    def question(self) -> dict[str, Any]:
        """The script's text and its arguments."""
        return {
            "script": Path(self.script).read_text(encoding="utf-8", errors="replace"),
            "arguments": self.script_arguments,
            "given": json.loads(json.dumps(self.given, default=str)),
            "metric": self.metric,
        }

    def facts(self) -> dict[str, str]:
        """What the first run says of the script's data."""
        first = self._probe()
        test = _test_look(first, self.metric)
        judged = "the script's test split"
        if test is None:
            judged = f"the evaluation split that it was tuned on, {NO_TEST}"
        return {
            "judged on": judged,
            "splits": "those of the script",
            "label noise": "as in the script",
            "tuned on": "the script's evaluation split, with its labels as they are",
        }

    def check(self, arms: Sequence[Arm]) -> None:
        """Make the sharpness-aware part of every arm's arguments once."""
        for arm in arms:
            for settings in settings_of(arm):
                try:
                    TrainingArguments(**{**arm.arguments, **settings, "output_dir": tempfile.gettempdir()})
                except (ValueError, TypeError, ImportError) as error:
                    raise CompareError(f"--arms: the arm '{arm.name}': {first_line(error)}") from error

    def costs(self, arms: Sequence[Arm]) -> tuple[dict[str, Cost], Scale]:
        """Measure a few steps of every arm, each in a process of its own with one thread."""
        first = self._probe()
        steps_per_epoch = max(1.0, first["steps_per_epoch"] or 1.0)
        costs = {}
        for arm in arms:
            arguments = {**arm.arguments, **settings_of(arm)[0], **in_every_step(arm), "max_steps": STEPS}
            seen = self._child(arguments, threads=1)
            costs[arm.name] = cost_of(SimpleNamespace(**seen), arm, steps_per_epoch, seen["step_seconds"][WARM_UP:])
        return costs, Scale(steps_per_epoch, first["processor_seconds"] - sum(first["step_seconds"]))

    def decay(self, total_steps: int) -> int:
        """The step at which the learning rate begins its last fall, as in the script's own training."""
        own = self._probe()["own"]
        if own.get("decay") is None:
            raise CompareError(f"--arms: sam_start=decay: {own.get('no_decay')}")
        return round(own["decay"] * total_steps)

    def run(self, arguments: Mapping[str, Any], seed: int, final: bool, averages: Sequence[str] = ()) -> dict[str, Any]:
        """Make one run and return its record; test scores are left out where it is no final one."""
        seeds = {"seed": seed, "data_seed": seed}
        seen = self._child({**arguments, **seeds}, averages=averages, measure=final)
        record = {
            name: seen.get(name)
            for name in ("steps", "epochs", "passes", "seconds", "seconds_per_step", "peak_memory", "diverged", "curve")
        }
        record["eval_curve"] = [
            [entry["step"], number(entry[f"eval_{self.metric}"])]
            for entry in seen.get("evaluations", [])
            if f"eval_{self.metric}" in entry
        ]
        record.update(self._looks(seen.get("looks", {}), final))
        record["averaged"] = {
            variant: self._looks(looks, final) for variant, looks in seen["averaged"].items() if looks
        }
        return record

    def _looks(self, looks: Mapping[str, Any], final: bool) -> dict[str, Any]:
        """The evaluation, and in a final run the test, in the form of a recipe's record."""
        own = looks.get("eval", {})
        test = next((looks[prefix] for prefix in TEST_PREFIXES if prefix in looks), None) if final else None
        record: dict[str, Any] = {"eval": own.get("scores", {})}
        judged = own
        if test is not None and self.metric in test["scores"]:
            record["test"], judged = test["scores"], test
        if final:
            measured = dict(judged.get("measures", {}))
            for name, value in measured.items():
                if isinstance(value, dict):  # of rounded weights all scores are there
                    measured[name] = value.get(self.metric)
            record["measures"] = measured
            if "predictions" in judged and self.metric == "accuracy":
                record["predictions"], record["labels"] = judged["predictions"], judged["labels"]
        return record

    def _probe(self) -> dict[str, Any]:
        """The script as it is, stopped after a few steps; its metrics must have the one that is asked for."""
        if self._first is None:
            first = self._child({}, stop_after=STEPS, threads=1)
            known = first.get("looks", {}).get("eval", {}).get("scores", {})
            if self.metric not in known:
                names = [f"eval_{name}" for name in known]
                reported = ", ".join(names) or "no evaluation: it must evaluate (--do_eval, or trainer.evaluate())"
                raise CompareError(
                    f"--metric: the script reports no 'eval_{self.metric}'{nearest(f'eval_{self.metric}', names)}; it "
                    f"reports {reported}"
                )
            self._first = first
        return self._first

    def _child(
        self,
        arguments: Mapping[str, Any],
        averages: Sequence[str] = (),
        measure: bool = False,
        stop_after: int | None = None,
        threads: int | None = None,
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="hf-sharpness-") as folder:
            path = Path(folder, "record.json")
            wish = {"path": str(path), "averages": list(averages), "measure": measure, "stop_after": stop_after}
            settings = {**_QUIET, **self.given, **arguments, "output_dir": str(Path(folder, "output"))}
            command = [sys.executable, "-m", "hf_sharpness.run"]
            for name, value in settings.items():
                command += ["--set", f"{name}={value}"]
            command += ["-m", "hf_sharpness.compare.probe", self.script, *self.script_arguments]
            environment = {**os.environ, WISH: json.dumps(wish)}
            if threads is not None:
                environment["OMP_NUM_THREADS"] = str(threads)
            result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
            record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if result.returncode and not (record.get("diverged") and "looks" in record):
                tail = " | ".join((result.stderr or result.stdout).strip().splitlines()[-_LAST_LINES:])
                raise CompareError(f"--script {self.script}: ended with status {result.returncode}: {tail}")
            if "steps" not in record:
                raise CompareError(f"--script {self.script}: trained nothing with a Trainer in its own process")
            return record


def _bare(metric: str) -> str:
    for prefix in ("eval_", *(f"{name}_" for name in TEST_PREFIXES)):
        metric = metric.removeprefix(prefix)
    return metric


def _test_look(record: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    looks = record.get("looks", {})
    return next((looks[name] for name in TEST_PREFIXES if metric in looks.get(name, {}).get("scores", {})), None)
