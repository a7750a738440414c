"""The work of a study, from a plan to finished runs: tuning, choice, final runs; in this process or in several."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .choice import choose
from .errors import CompareError
from .execution import Execution
from .plan import FINAL, Plan, Run
from .results import environment
from .subject import Subject

Save = Callable[[], None]


def work(execution: Execution, subject: Subject, save: Save, show: bool = True, most: int | None = None) -> bool:
    """Make the runs of a study that are not finished yet.

    Args:
        execution: The storage, begun with a plan.
        subject: Makes a run.
        save: Called after every run and at the end.
        show: Draw a progress bar.
        most: Stop after so many runs. Default None: none is left.

    Returns:
        Whether every run is finished.
    """
    plan = execution.plan
    with _progress(plan, execution, show) as advance:

        def after(run: Run) -> None:
            save()
            advance()

        made = execution.work(plan.tuning_runs(), _maker(execution, subject), after, most)
        if not _all_there(execution, plan.tuning_runs()):
            return False
        advance()
        finals = _finals(execution)
        left = None if most is None else most - made
        execution.work(finals, _maker(execution, subject), after, left)
        return _all_there(execution, finals)


def _maker(execution: Execution, subject: Subject) -> Callable[[Run], tuple[dict[str, Any], float | None]]:
    plan = execution.plan

    def make(run: Run) -> tuple[dict[str, Any], float | None]:
        final = run.stage == FINAL
        arm = plan.arm(run.arm)
        averages: Sequence[str] = ()
        if arm.kind == "base" and subject.averaging:
            averages = choose(plan, execution.finished()).variants(run.arm) if final else ("swa", "ema")
        record = subject.run(plan.arguments(run.arm, run.point), run.seed, final, averages)
        now = datetime.datetime.now(datetime.timezone.utc)
        record = {**record, "environment": environment(), "date": now.date().isoformat()}
        judged = record.get("test") or record["eval"] if final else record["eval"]
        if plan.metric not in judged:
            raise CompareError(
                f"--metric: the run reports no '{plan.metric}'; it reports {', '.join(judged) or 'nothing'}"
            )
        return record, judged[plan.metric]

    return make


def _finals(execution: Execution) -> list[Run]:
    plan = execution.plan
    return plan.final_runs(choose(plan, execution.finished()).points)


def _all_there(execution: Execution, runs: Sequence[Run]) -> bool:
    finished = execution.finished()
    return all(run.key in finished for run in runs)


def left(execution: Execution) -> int:
    """How many runs are still to be made."""
    plan, finished = execution.plan, execution.finished()
    tuning = plan.tuning_runs()
    total = len(tuning) + len([arm for arm in plan.arms if arm.runs]) * len(plan.final_seeds)
    return total - len(finished)


@contextlib.contextmanager
def _progress(plan: Plan, execution: Execution, show: bool) -> Iterator[Callable[[], None]]:
    """A bar over the expected seconds of all runs, with the time left."""
    if not show:
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[runs]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=1800) as progress:
        task = progress.add_task("tuning", total=1.0, runs="")

        def advance() -> None:
            _update(progress, task, plan, execution)

        advance()
        yield advance


def _update(progress: Progress, task: TaskID, plan: Plan, execution: Execution) -> None:
    finished = execution.finished()
    tuning = plan.tuning_runs()
    tuned = all(run.key in finished for run in tuning)
    points = choose(plan, finished).points if tuned else {arm.name: 0 for arm in plan.arms}
    finals = plan.final_runs(points)
    runs = [*tuning, *finals]
    done = [run for run in runs if run.key in finished]
    progress.update(
        task,
        description="final runs" if tuned else "tuning",
        total=sum(plan.expected_seconds(run) for run in runs),
        completed=sum(plan.expected_seconds(run) for run in done),
        runs=f"{len(done)} of {len(runs)} runs",
    )


def work_in_processes(execution: Execution, argv: Sequence[str], jobs: int, save: Save, show: bool = True) -> bool:
    """The same with `jobs` processes on one storage: one for each CUDA device, else the CPU's threads divided.

    Args:
        argv: The command line of this process, without the program; the workers get `--worker` with it.

    Raises:
        CompareError: A worker failed; what it said stands above.
    """
    plan = execution.plan
    threads = max(1, torch.get_num_threads() // jobs)
    devices = _devices()
    workers = []
    for number in range(jobs):
        place = {"OMP_NUM_THREADS": str(threads)}
        if devices:
            place["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        command = [sys.executable, "-m", "hf_sharpness.compare", *argv, "--worker"]
        workers.append(subprocess.Popen(command, env={**os.environ, **place}))
    try:
        with _progress(plan, execution, show) as advance:
            while any(worker.poll() is None for worker in workers):
                time.sleep(1.0)
                advance()
                save()
                if any(worker.poll() not in (None, 0) for worker in workers):
                    break
    finally:
        for worker in workers:
            if worker.poll() is None and any(other.poll() not in (None, 0) for other in workers):
                worker.terminate()
        for worker in workers:
            worker.wait()
        save()
    if any(worker.returncode for worker in workers):
        raise CompareError("a worker failed, see above; nothing finished is lost, run the same command again to go on")
    return left(execution) == 0


def _devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def default_jobs() -> int:
    """One process for each CUDA device; one on the CPU."""
    return max(1, torch.cuda.device_count())
