"""scripts/cost.py: arms take turns, ratios are to the floor of the same round, and every part runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from costs import timing

    return timing


def test_a_ratio_is_to_the_floor_of_the_same_round(timing: Any) -> None:
    """On a machine that gets slower in every step, by a clock that only steps move."""
    now, order = [0.0], []

    def step(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            now[0] += seconds * (1 + len(order) // 4)  # a round has four steps

        return run

    arms = [timing.Arm("floor", step("floor", 1.0)), timing.Arm("a", step("a", 2.0), "floor")]
    arms.append(timing.Arm("b", step("b", 3.0), "floor"))
    found = timing.take_turns(arms, rounds=6, clock=lambda: now[0], warm_up=1)
    assert [order.count(name) for name in ("floor", "a", "b")] == [14, 7, 7], "the floor twice in a round"
    assert len(found["a"].ratios) == 6
    assert found["a"].ratio == pytest.approx(2.0, rel=0.2)
    assert found["b"].ratio == pytest.approx(3.0, rel=0.2)
    assert found["floor"].ratios == []
    assert len({tuple(order[i : i + 4]) for i in range(0, 28, 4)}) > 1, "in another order"


def test_an_interrupt_keeps_the_rounds_that_are_over(timing: Any, capsys: Any) -> None:
    steps = [0]

    def step() -> None:
        steps[0] += 1
        if steps[0] == 6:
            raise KeyboardInterrupt

    arms = [timing.Arm("floor", step), timing.Arm("a", step, "floor")]
    found = timing.take_turns(arms[:1], rounds=9, clock=lambda: 0.0, warm_up=2)
    assert len(found["floor"].seconds) == 3
    assert "3 rounds instead of 9" in capsys.readouterr().err
    steps[0] = 5
    with pytest.raises(KeyboardInterrupt):
        timing.take_turns(arms, rounds=9, clock=lambda: 0.0, warm_up=0)


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path) -> None:
    picture = tmp_path / "cost.png"
    parts = ["time", "memory", "micro-batches", "ranks"]
    command = [sys.executable, str(SCRIPTS / "cost.py"), "--device", "cpu", "--subject", "smallest", "--batch", "8"]
    command += ["--rounds", "1", "--main", "--worlds", "2", "--only", *parts, "--picture", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert {"base", "SAM", "WSAM coupled", "Trainer, SAM", "stock Trainer, base", "SAM, device"} <= set(rows)
    assert picture.stat().st_size > 1000
