"""A process that works on a study and is slow about it: `python worker.py DATABASE LOG SECONDS GRACE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from studies import a_plan, a_record

from hf_sharpness.compare.execution import Execution
from hf_sharpness.compare.plan import Run


def main() -> None:
    database, log, seconds, grace = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    execution = Execution(f"sqlite:///{database}", "study", True, heartbeat=1, grace=grace)
    plan = execution.stored_plan() or a_plan(trials=1, tuning=1, seeds=2)
    execution.begin(plan)

    def make(run: Run) -> tuple[dict, float]:
        with log.open("a") as file:
            file.write(f"begun {run.key}\n")
        time.sleep(seconds)
        return a_record(run, 20), 0.5

    def after(run: Run) -> None:
        with log.open("a") as file:
            file.write(f"finished {run.key}\n")

    execution.work(plan.final_runs({arm.name: 0 for arm in plan.arms}), make, after)


if __name__ == "__main__":
    main()
