"""Runs as trials of an Optuna study: enqueued in advance, one at a time, never a finished one again.

The storage has a heartbeat. Trials whose process died fail when their heartbeat has stopped for a while, and Optuna's
own callback enqueues their parameters again; so any number of processes can work on one storage, and be killed.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import Trial, TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from .plan import FINAL, TUNING, Plan, Run

HEARTBEAT, GRACE = 15, 60
"""Seconds between heartbeats, and without one until a run counts as dead."""
_KEY, _RECORD, _PLAN = "run", "record", "plan"
_ATTEMPTS = 5
_OPEN = (TrialState.WAITING, TrialState.RUNNING)

Make = Callable[[Run], tuple[dict[str, Any], float | None]]
"""Makes a run: its record, and the value of the primary metric (None: not a finite number)."""


class Execution:
    """The storage of one study.

    Args:
        url: SQLAlchemy's address of the database, as `sqlite:///study.db` or `postgresql://...`.
        name: Of the study: one for each question.
        greater_is_better: Direction of the primary metric.
        heartbeat: Seconds between heartbeats.
        grace: Seconds without a heartbeat after which a run counts as dead.
    """

    plan: Plan

    def __init__(
        self, url: str, name: str, greater_is_better: bool, heartbeat: int = HEARTBEAT, grace: int = GRACE
    ) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.heartbeat = heartbeat
        direction: Literal["maximize", "minimize"] = "maximize" if greater_is_better else "minimize"
        for attempt in range(_ATTEMPTS):
            try:
                storage = _open(url, heartbeat, grace)
                self.study = optuna.create_study(
                    storage=storage, study_name=name, direction=direction, load_if_exists=True
                )
                return
            except (SQLAlchemyError, OptunaError):  # processes that start together make the same tables
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(1.0)

    def stored_plan(self) -> Plan | None:
        """The plan with which the study was begun; None for a new one."""
        content = self.study.user_attrs.get(_PLAN)
        return None if content is None else Plan.from_json(content)

    def begin(self, plan: Plan) -> None:
        """Work on this plan, and keep it for processes that join or go on."""
        if self.study.user_attrs.get(_PLAN) is None:
            self.study.set_user_attr(_PLAN, plan.to_json())
        self.plan = plan
        self._stages: Any = CategoricalDistribution([TUNING, FINAL])
        self._arms: Any = CategoricalDistribution([arm.name for arm in plan.arms if arm.runs])
        self._points = IntDistribution(0, max(len(plan.points) - 1, 1))
        self._distributions = {
            "stage": self._stages,
            "arm": self._arms,
            "point": self._points,
            "seed": IntDistribution(0, 2**31 - 1),
        }

    def finished(self) -> dict[str, dict[str, Any]]:
        """The records of all finished runs by key."""
        found: dict[str, dict[str, Any]] = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found.setdefault(trial.user_attrs[_KEY], trial.user_attrs[_RECORD])
        return found

    def take_over(self, records: Mapping[str, tuple[Run, dict[str, Any], float | None]]) -> None:
        """Add finished runs from elsewhere (a `results.json`) that this storage does not have."""
        present = self.finished()
        for key, (run, record, value) in records.items():
            if key not in present:
                self.study.add_trial(
                    create_trial(
                        state=TrialState.COMPLETE,
                        value=self._value(value),
                        params=_parameters(run),
                        distributions=self._distributions,
                        user_attrs={_KEY: key, _RECORD: record},
                    )
                )

    def work(self, runs: Sequence[Run], make: Make, after: Callable[[Run], None], most: int | None = None) -> int:
        """Make what is left of `runs`, until every one is finished, by this process or another.

        Args:
            runs: All runs of a stage.
            make: Makes one; an exception from it ends the work, and the run is made again next time.
            after: Called after each run that this process made.
            most: Stop after so many runs of this process. Default None: no limit.

        Returns:
            How many runs this process made.
        """
        made = 0
        while most is None or made < most:
            self._enqueue_missing(runs)
            trials = self._by_key(runs)
            if all(TrialState.COMPLETE in states for states in trials.values()):
                break
            if not any(TrialState.WAITING in states for states in trials.values()):
                # Another process is at them, or was: then their heartbeat has stopped.
                time.sleep(min(self.heartbeat, 5))
                self._fail_stale()
                continue
            before = made
            finished: list[Run] = []
            self.study.optimize(lambda trial: self._objective(trial, make, finished), n_trials=1)  # noqa: B023
            made = before + len(finished)
            for run in finished:
                after(run)
        return made

    def _objective(self, trial: Trial, make: Make, finished: list[Run]) -> float:
        if _KEY not in trial.user_attrs:  # another process was faster, and Optuna made a trial of its own
            raise optuna.TrialPruned("no run was waiting")
        run = Run(
            trial.suggest_categorical("stage", self._stages.choices),
            trial.suggest_categorical("arm", self._arms.choices),
            trial.suggest_int("point", 0, self._points.high),
            trial.suggest_int("seed", 0, 2**31 - 1),
        )
        if self._is_a_copy(run.key, trial.number):
            raise optuna.TrialPruned("the run is made by another trial")
        record, value = make(run)
        trial.set_user_attr(_RECORD, record)
        finished.append(run)
        return self._value(value)

    def _value(self, value: float | None) -> float:
        """Optuna fails a trial without a number; a run that diverged has the worst one."""
        if value is not None:
            return value
        return float("-inf") if self.plan.greater_is_better else float("inf")

    def _is_a_copy(self, key: str, number: int) -> bool:
        """Whether two processes that started together have both enqueued the run: the first trial counts."""
        return any(
            trial.number < number and trial.user_attrs.get(_KEY) == key
            for trial in self.study.get_trials(deepcopy=False, states=(*_OPEN, TrialState.COMPLETE))
        )

    def _by_key(self, runs: Sequence[Run]) -> dict[str, set[TrialState]]:
        trials: dict[str, set[TrialState]] = {run.key: set() for run in runs}
        for trial in self.study.get_trials(deepcopy=False):
            key = trial.user_attrs.get(_KEY)
            if key in trials:
                trials[key].add(trial.state)
        return trials

    def _enqueue_missing(self, runs: Sequence[Run]) -> None:
        trials = self._by_key(runs)
        for run in runs:
            if not trials[run.key] & {*_OPEN, TrialState.COMPLETE}:  # new, or stopped by Ctrl-C or an error
                self.study.enqueue_trial(_parameters(run), user_attrs={_KEY: run.key})

    def _fail_stale(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self.study)


def _open(url: str, heartbeat: int, grace: int) -> RDBStorage:
    connect = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = RDBStorage(
            url,
            engine_kwargs=connect,
            heartbeat_interval=heartbeat,
            grace_period=grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    if url.startswith("sqlite"):
        # Optuna locks the row of a waiting trial before it takes it, and SQLite has no such lock: two processes would
        # get the same one. They take turns when every transaction begins as a writing one (SQLAlchemy's recipe).
        event.listen(storage.engine, "connect", _leave_transactions_to_us)
        event.listen(storage.engine, "begin", _begin_writing)
        storage.engine.dispose()
    return storage


def _leave_transactions_to_us(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _begin_writing(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _parameters(run: Run) -> dict[str, Any]:
    return {"stage": run.stage, "arm": run.arm, "point": run.point, "seed": run.seed}
