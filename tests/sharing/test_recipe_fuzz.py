"""Whatever a shared recipe holds: nothing is read, run or reached, it ends soon, and no error prints raw bytes.

Every recipe goes as far as training would: it is loaded as somebody else's, its data are read, its model and its
Trainer are made. Files that tempt it lie in the current folder, and Python's audit hooks tell what was touched.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_recipes import TEMPTING, VALID, damaged, recipes, yaml_bits
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_sharpness.tasks import size
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.shared import check_plain_yaml, load_shared_recipe

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
QUIET = {"database": None, "suppress_health_check": list(HealthCheck)}
FEW = settings(max_examples=60, deadline=None, derandomize=True, **QUIET)
MANY = settings(max_examples=5000, deadline=None, **QUIET)
EFFORTS = pytest.mark.parametrize("effort", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
HANG = 300.0
"""Seconds after which a recipe that is still being read ends the test's process, with a traceback."""
PROGRAMS = ("socket.connect", "socket.getaddrinfo", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")


class Watch:
    """What happened while it was on: tempting files that were opened, folders of them listed, connections, programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.on = folder, [], False
        self.tempting = {str(path) for path in folder.rglob("*")}
        sys.addaudithook(self.audit)  # there is no way to take it off

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            if os.path.abspath(os.fsdecode(arguments[0])) in self.tempting:
                self.seen.append(f"{event} {arguments[0]!r}")
        elif event.startswith(PROGRAMS):
            self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("tempting")
    for name, content in TEMPTING.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    before = os.getcwd()
    os.chdir(folder)
    yield Watch(folder)
    os.chdir(before)


def refusal_of(function: Callable[..., Any], *arguments: Any) -> str:
    """The one line with which a function refuses, or nothing. Any other error is a failure."""
    try:
        function(*arguments)
    except RecipeError as error:
        refusal = str(error)
    else:
        return ""
    assert refusal.isprintable()
    assert len(refusal) < 2500
    return refusal


def attempt(content: bytes, watch: Watch, capture: pytest.CaptureFixture[str]) -> str:
    """Go as far as training would with this recipe; what it said, if it was refused."""
    from hf_sharpness.tasks.prepare import prepare

    folder = watch.folder
    shared = folder.parent / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "recipe.yaml").write_bytes(content)

    def make() -> None:
        recipe = load_shared_recipe(str(shared))
        recipe.training |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "output_dir": "out"}
        prepare(recipe)

    faulthandler.dump_traceback_later(HANG, exit=True)
    watch.on = True
    try:
        refusal = refusal_of(make)
    finally:
        watch.on = False
        faulthandler.cancel_dump_traceback_later()
    seen, watch.seen = watch.seen, []
    assert not seen
    assert not (folder / "pwned").exists()
    assert "password" not in refusal
    printed = "".join(capture.readouterr())
    assert all(c.isprintable() or c.isspace() for c in printed), repr(printed)
    return refusal


@EFFORTS
def test_a_recipe_with_hostile_entries(effort: settings, watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    refused = []

    @effort
    @given(recipes())
    @example(VALID)
    def check(recipe: dict[str, Any]) -> None:
        refused.append(bool(attempt(json.dumps(recipe).encode(), watch, capfd)))

    check()
    assert not all(refused)  # some were made into a model and a Trainer
    assert sum(refused) > len(refused) / 3


@EFFORTS
def test_a_file_that_is_hardly_a_recipe(effort: settings, watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    @effort
    @given(st.binary(max_size=200) | st.lists(yaml_bits, max_size=25).map("".join).map(str.encode) | damaged())
    @example(b"{" * 60_000)
    @example(b"- " * 30_000)
    @example(b"? " * 30_000)
    @example(b"[a, " * 16_000)
    @example(b"\x1b[31m: 1")
    def check(content: bytes) -> None:
        attempt(content, watch, capfd)

    check()


@EFFORTS
def test_plain_yaml_is_refused_or_small(effort: settings) -> None:
    @effort
    @given(st.binary(max_size=300) | st.lists(yaml_bits, max_size=40).map("".join).map(str.encode))
    def check(content: bytes) -> None:
        problem = refusal_of(check_plain_yaml, content, "the file")
        assert not problem or problem.startswith("the file: ")

    check()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"hidden_size": 100_000, "intermediate_size": 1_000_000}, "more than .* parameters"),
        ({"num_hidden_layers": 900_000}, "more than 300 modules"),
        ({"patch_size": 1024, "image_size": 1024, "hidden_size": 500_000}, "more than .* parameters"),
    ],
)
def test_a_model_that_does_not_fit(
    config: dict[str, int], problem: str, watch: Watch, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "MOST_MODULES", 300)
    recipe = VALID | {"model": {"config": VALID["model"]["config"] | config}}
    refusal = attempt(json.dumps(recipe).encode(), watch, capfd)
    assert "model.config: a model of " in refusal
    assert re.search(problem, refusal)
