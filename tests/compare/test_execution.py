"""Runs as trials: nothing finished is made again, nothing half-finished counts, however a process ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from studies import a_plan, a_record

from hf_sharpness.compare.execution import Execution
from hf_sharpness.compare.plan import Run

WORKER = Path(__file__).with_name("worker.py")


def open_study(folder: Path) -> Execution:
    execution = Execution(f"sqlite:///{folder / 'study.db'}", "study", True, heartbeat=1, grace=3)
    execution.begin(execution.stored_plan() or a_plan(trials=1, tuning=1, seeds=2))
    return execution


def finals(execution: Execution) -> list[Run]:
    return execution.plan.final_runs({arm.name: 0 for arm in execution.plan.arms})


def start(folder: Path, seconds: float, grace: int) -> subprocess.Popen[bytes]:
    words = [folder / "study.db", folder / "log", seconds, grace]
    return subprocess.Popen([sys.executable, str(WORKER), *map(str, words)])


def lines(folder: Path, word: str) -> list[str]:
    log = folder / "log"
    text = log.read_text() if log.exists() else ""
    return [line.removeprefix(f"{word} ") for line in text.splitlines() if line.startswith(f"{word} ")]


def wait_for(condition, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def make_nothing_of(run: Run):
    raise AssertionError(f"{run} is finished")


@pytest.mark.slow
def test_killed_and_gone_on(tmp_path):
    worker = start(tmp_path, 0.5, grace=3)
    try:
        wait_for(lambda: len(lines(tmp_path, "begun")) >= 3 and len(lines(tmp_path, "finished")) >= 2)
    finally:
        worker.kill()  # SIGKILL
        worker.wait()
    finished, begun = lines(tmp_path, "finished"), lines(tmp_path, "begun")

    execution = open_study(tmp_path)
    stored = execution.finished()
    assert set(finished) <= set(stored)  # a kill between storing and telling loses the line, not the run
    assert all(record["test"]["accuracy"] == 0.5 for record in stored.values())
    made: list[str] = []

    def make(run: Run):
        made.append(run.key)
        return a_record(run, 20), 0.5

    execution.work(finals(execution), make, lambda run: None)
    assert not set(made) & set(stored)
    assert set(begun) - set(stored) <= set(made)  # what was cut off is made again
    assert len(made) == len(set(made))
    assert set(execution.finished()) == {run.key for run in finals(execution)}


@pytest.mark.slow
def test_two_processes_share_the_runs(tmp_path):
    workers = [start(tmp_path, 0.2, grace=600) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.wait(timeout=600) == 0
    finally:
        for worker in workers:
            worker.kill()
    counts = Counter(lines(tmp_path, "begun"))
    assert set(counts.values()) == {1}
    assert set(counts) == {run.key for run in finals(open_study(tmp_path))}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_run_that_broke_off_is_made_again(tmp_path, error):
    execution = open_study(tmp_path)
    runs = finals(execution)
    made: list[str] = []

    def make(run: Run):
        made.append(run.key)
        if len(made) == 3:
            raise error
        return a_record(run, 20), 0.5

    with pytest.raises(error):
        execution.work(runs, make, lambda run: None)
    assert len(execution.finished()) == 2
    open_study(tmp_path).work(runs, make, lambda run: None)
    assert Counter(made) == Counter({run.key: 1 + (run.key == made[2]) for run in runs})


def test_one_at_a_time_and_then_nothing(tmp_path):
    execution = open_study(tmp_path)
    runs = finals(execution)[:3]
    for number in range(3):
        assert execution.work(runs, lambda run: (a_record(run, 20), 0.5), lambda run: None, most=1) == 1
        assert len(execution.finished()) == number + 1
    assert execution.work(runs, make_nothing_of, lambda run: None) == 0


def test_finished_runs_are_taken_over_from_a_file(tmp_path):
    runs = finals(open_study(tmp_path))
    (tmp_path / "study.db").unlink()
    execution = open_study(tmp_path)
    execution.take_over({run.key: (run, a_record(run, 20), 0.5) for run in runs})
    execution.take_over({run.key: (run, a_record(run, 10), 0.2) for run in runs})
    assert execution.work(runs, make_nothing_of, lambda run: None) == 0
    assert {record["test"]["accuracy"] for record in execution.finished().values()} == {0.5}


def test_a_metric_that_is_no_number_is_a_result(tmp_path):
    execution = open_study(tmp_path)
    runs = finals(execution)[:2]
    execution.work(runs, lambda run: ({"eval": {"accuracy": None}}, None), lambda run: None)
    assert len(execution.finished()) == 2


def test_the_plan_is_kept_for_those_who_join(tmp_path):
    plan = open_study(tmp_path).plan
    assert open_study(tmp_path).stored_plan() == plan
