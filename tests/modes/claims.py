"""What marked tests show, and the table of modes made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_sharpness.methods.registry import variants

METHODS = tuple(variants())
RESULTS = ("exact", "within rounding", "skipped as stock", "clean", "refused")


@dataclass(frozen=True)
class Claim:
    """One test shows a result for one mode and one method."""

    mode: str
    method: str
    result: str
    test: str
    brief: str | None = None


def claims_of(item: pytest.Item) -> list[Claim]:
    """What a test shows when it passes; nothing if it is expected to fail."""
    if any(True for _ in item.iter_markers("xfail")):
        return []
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    test = item.nodeid.split("[")[0].split("/")[-1]
    claims = []
    for marker in item.iter_markers("shows"):
        if marker.kwargs["result"] not in RESULTS:
            raise pytest.UsageError(f"{item.nodeid}: result={marker.kwargs['result']!r} is none of {RESULTS}")
        mode = marker.kwargs["mode"].format(**parameters)
        brief = marker.kwargs.get("brief")
        for method in methods_of(marker.kwargs.get("method"), parameters):
            claims.append(Claim(mode, method, marker.kwargs["result"], test, brief and brief.format(**parameters)))
    return claims


def methods_of(method: Any, parameters: dict[str, Any]) -> Sequence[str]:
    if method == "all":
        return METHODS
    if method is not None:
        return [method] if isinstance(method, str) else method
    spec = parameters["spec"]
    return [
        title
        for title, (name, settings) in variants().items()
        if name == spec.method and settings.items() <= spec.settings.items()
    ]


class Claims:
    """A pytest plugin: collects the claims of all tests found, and of those that passed."""

    def __init__(self, table: str | None):
        self.table = table
        self.all: dict[str, list[Claim]] = {}
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.all = {item.nodeid: claims_of(item) for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        elif report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.table or hasattr(session.config, "workerinput"):
            return
        only_collected = session.config.option.collectonly
        shown = self.all if only_collected else self.passed - self.failed
        claims = [claim for nodeid in self.all if nodeid in shown for claim in self.all[nodeid]]
        folder = Path(self.table)
        (folder / "modes.md").write_text(page(claims))
        (folder / "verified-modes.md").write_text(verified_page(claims))


HEAD = """# What runs in which mode

- **exact**: bit for bit the run it is compared with, or equal to a float64 reference to 1e-9.
- **within rounding**: equal up to the rounding of the arithmetic that the mode itself uses
  ([how much that is](numerical-notes.md)).
- **skipped as stock**: the step is skipped as transformers' own Trainer skips it; nothing is changed bit for bit.
- **clean**: weights are bit for bit unperturbed wherever they can be seen, and no run hangs.
- **refused**: a clear error before the first step, naming the remedy.

Every row is shown by a test: [all rows, with their tests](verified-modes.md). What needs a GPU is in [gpu.md](gpu.md).

<!-- Made by `python scripts/mode_table.py` from the tests in `tests/modes` that passed; do not edit. -->

"""

VERIFIED = """# Modes, row by row

What the words mean is said with the [short table](modes.md), which has the rows that matter to most.

<!-- Made by `python scripts/mode_table.py` from the tests in `tests/modes` that passed; do not edit. -->

"""


def page(claims: Iterable[Claim]) -> str:
    """The page for users: a row for every mode in brief."""
    return HEAD + rows((claim for claim in claims if claim.brief), "brief", tests=False)


def verified_page(claims: Iterable[Claim]) -> str:
    """The page of all modes, with the tests that show them."""
    return VERIFIED + rows(claims, "mode", tests=True)


def rows(claims: Iterable[Claim], key: str, tests: bool) -> str:
    """A table with a row for every value of one attribute of the claims, and a column for their tests if wanted."""
    claims = list(claims)
    columns = ["mode", *METHODS, *(["shown by"] if tests else [])]
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for mode in dict.fromkeys(getattr(claim, key) for claim in claims):
        of_mode = [claim for claim in claims if getattr(claim, key) == mode]
        cells = [cell(claim.result for claim in of_mode if claim.method == method) for method in METHODS]
        if tests:
            cells.append(", ".join(f"`{test}`" for test in dict.fromkeys(claim.test for claim in of_mode)))
        rows.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def cell(results: Iterable[str]) -> str:
    """What one method does in one mode: of several results that which promises least, a dash if nothing is shown."""
    found = set(results)
    if not found:
        return "–"
    return max(found, key=RESULTS.index)
