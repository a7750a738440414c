"""`hf-sharpness rho`: what a range test measures, against autograd; what its rules say, against closed forms."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import flat
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hf_sharpness import SharpnessAware, Trainer, TrainingArguments
from hf_sharpness.measure.rho_method import Plan, RhoRange
from hf_sharpness.methods import METHODS, Method, RangeForm, register
from hf_sharpness.methods.registry import unregister

pytest.importorskip("pydantic")
from hf_sharpness.measure import rho_cli, rho_rules
from hf_sharpness.measure.rho_run import CannotMeasure, Wish, plan_of, radii, range_test

RADII = (0.01, 0.1, 1.0)
PLAN = Plan(RADII, batches=2, warm_up=3)
STEPS = steps_of(classification(44), 4)


def test_the_plan_says_which_steps_measure_what() -> None:
    looks = [PLAN.look(number) for number in range(PLAN.steps + 2)]
    four = [("before", False), ("before", True)] * 2
    assert looks == [*four, None, None, None, *[("after", adaptive) for _, adaptive in four], None, None]


def loss_and_gradient(model: Net, w: Tensor, batch: Any) -> tuple[float, Tensor]:
    vector_to_parameters(w, model.parameters())
    loss = model(**batch)["loss"]
    return loss.item(), parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))


def test_a_measured_step_is_autograds_and_the_base_optimizers() -> None:
    """Losses, gradients and angles in both metrics; and the weights are those of a run that measures nothing."""
    model, stock = Net().double(), Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    plain = torch.optim.AdamW(stock.parameters(), lr=0.01)
    method = SharpnessAware(RhoRange(), model, optimizer)
    method.method.plan = PLAN
    weights = []
    for (batch,) in STEPS[: PLAN.steps]:
        weights.append(flat(model))

        def closure(batch: Any = batch) -> Tensor:
            loss = model(**batch)["loss"]
            loss.backward()
            return loss

        method.backward(closure)
        stock(**batch)["loss"].backward()
        for each in (optimizer, plain):
            each.step()
            each.zero_grad()
        assert torch.equal(flat(model), flat(stock))

    found = method.method.found
    assert [(look["step"], look["when"], look["adaptive"]) for look in found] == [
        (number, *look) for number in range(PLAN.steps) if (look := PLAN.look(number))
    ]
    for look in found:
        w, (batch,) = weights[look["step"]], STEPS[look["step"]]
        loss, g = loss_and_gradient(stock, w, batch)
        metric = w.abs() if look["adaptive"] else torch.ones_like(w)
        direction = metric**2 * g / (metric * g).norm()
        assert look["loss"] == pytest.approx(loss, rel=1e-12)
        assert look["gradient_norm"] == pytest.approx(g.norm().item(), rel=1e-10)
        assert look["slope"] == pytest.approx((direction @ g).item(), rel=1e-9)
        assert look["length"] == pytest.approx(direction.norm().item(), rel=1e-9)
        for point in look["radii"]:
            there, g_s = loss_and_gradient(stock, w + point["rho"] * direction, batch)
            assert point["loss"] == pytest.approx(there, rel=1e-9)
            assert point["gradient_norm"] == pytest.approx(g_s.norm().item(), rel=1e-9)
            assert point["cosine"] == pytest.approx((g @ g_s / (g.norm() * g_s.norm())).item(), abs=1e-9)


def look(rise: Any, cosine: Any = lambda rho: 1.0, size: Any = lambda rho: 1.0 + 10 * rho, **facts: Any) -> Any:
    """A batch with a loss of 2, whose rise, cosine and norm of the gradient are functions of rho."""
    points = [
        {"rho": rho, "loss": 2 + rise(rho), "gradient_norm": 3 * size(rho), "cosine": cosine(rho)}
        for rho in radii(points=41)
    ]
    return {
        "loss": 2.0,
        "gradient_norm": 3.0,
        "slope": 3.0,
        "length": 1.0,
        "weight_norm": 50.0,
        "radii": points,
        **facts,
    }


SAM, COUPLED, XSAM = (RangeForm("one"), RangeForm("half as much again", weight=1.5), RangeForm("far", reach=2.0))


@pytest.mark.parametrize(
    ("batch", "high", "reason"),
    [
        (look(lambda rho: 4 * rho), 0.5, "more than twice"),  # a rise of the loss itself, 2, at rho .5
        (look(lambda rho: rho, lambda rho: 1 - rho), 0.7, "turned away"),  # a cosine of .3 at rho .7
        (look(lambda rho: rho * (2 - rho) / 2), 1 + math.sqrt(0.5), "falls again"),  # highest at 1, half of it there
        (look(lambda rho: rho if rho < 0.2 else math.nan), 0.2, "not finite"),
    ],
    ids=["rise", "cosine", "hill", "nan"],
)
def test_where_the_range_ends_and_why(batch: Any, high: float, reason: str) -> None:
    """A grid of eight radii a decade: the end is at most one of them below. The effect begins at .025 or before."""
    found = rho_rules.range_of([batch] * 3, SAM, False)
    step = 10 ** (5 / 40)
    assert found.is_one
    assert high / step <= found.high <= high
    assert 0.012 < found.low <= 0.025 * step
    assert reason in found.high_reason
    assert found.low < found.high


def test_the_forms_are_those_that_the_methods_declare() -> None:
    """The weights are those of the update rules: SAM's 1, coupled WSAM's gamma / (1 - gamma); XSAM looks at 2 rho."""

    @dataclasses.dataclass
    class Twice(Method):
        name = "twice"
        range_forms = (RangeForm("TWICE", weight=2.0),)

    @dataclasses.dataclass
    class Heir(Twice):
        name = "heir"

    before = [("SAM", 1.0, 1.0), ("WSAM coupled, gamma .6", pytest.approx(1.5), 1.0), ("XSAM, rho_max 2 rho", 1.0, 2.0)]
    assert [dataclasses.astuple(form) for form in rho_rules.forms()] == before
    try:
        register(Twice)
        register(Heir)  # another rule, of which nothing is known
        assert [form.name for form in rho_rules.forms()][3:] == ["TWICE"]
    finally:
        unregister("heir")
        unregister("twice")


def test_methods_differ_in_what_they_add_and_how_far_they_look() -> None:
    batch, step = look(lambda rho: 4 * rho), 10 ** (5 / 40)
    assert 0.025 / 1.5 <= rho_rules.range_of([batch], COUPLED, False).low <= 0.025 / 1.5 * step
    assert 0.25 / step <= rho_rules.range_of([batch], XSAM, False).high <= 0.25  # it looks at 2 rho


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([look(lambda rho: 4 * rho, size=lambda rho: 1.0)], "no rho changes the step"),
        ([look(lambda rho: 4.0)], "even the smallest rho is too far"),
        ([look(lambda rho: 0.0)], "nothing stops the test"),
        ([look(lambda rho: 100 * rho)], "before the step changes"),
        ([look(lambda rho: 4 * rho), look(lambda rho: 0.2 * rho), look(lambda rho: 40 * rho)], "disagree"),
    ],
    ids=["effect", "too-far", "endless", "order", "disagree"],
)
def test_where_there_is_no_range_it_says_why(batches: Any, reason: str) -> None:
    found = rho_rules.range_of(batches, SAM, False)
    assert reason in found.why_not
    assert not found.is_one


def test_candidates_are_closed_forms() -> None:
    """The rise and the cosine are straight lines over log rho, as the rule draws them between radii."""
    decades = lambda rho: math.log10(rho / 1e-4)  # noqa: E731  # 0 to 5
    batch = look(lambda rho: 2 * 0.4 * decades(rho), lambda rho: 1 - 0.2 * decades(rho))
    rows = {row["rule"].partition(":")[0]: row["rho"] for row in rho_rules.candidates([batch, batch])}
    assert rows["sharpness = 0.25 x loss"] == pytest.approx(1e-4 * 10 ** (0.25 / 0.4), rel=1e-5)
    assert rows["cosine of g and g_s = 0.7"] == pytest.approx(1e-4 * 10**1.5, rel=1e-5)
    assert rows["||delta|| = 0.01 x ||w||"] == pytest.approx(0.5)
    assert rows["loss budget, tau = 0.05"] == pytest.approx(0.05 * 2 / 3)
    assert rows["LE-SAM (arXiv 2605.10183)"] == pytest.approx(0.1 / 3)
    flat_ = rho_rules.candidates([look(lambda rho: 0.0)])
    assert flat_[0]["rho"] is None


def test_the_warm_up_is_a_tenth_of_the_training_if_it_fits() -> None:
    wish = Wish(RADII, batches=2)
    assert [plan_of(wish, total).warm_up for total in (30, 500, 10_000)] == [10, 50, 200]
    with pytest.raises(CannotMeasure, match=r"takes 18 steps .* training has 17: use fewer --batches"):
        plan_of(wish, 17)


def test_the_command_on_a_recipe(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A record in JSON, a table and a picture; nothing of the training is left, and no method of that name."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    flags = [part for name, value in small.items() for part in (f"--model.config.{name}", str(value))]
    options = ["--batches", "1", "--warm_up", "2", "--points", "4", "--output_dir", "out", "--use_cpu", "true"]
    assert rho_cli.main(["digits-vit", *options, *flags, "--data.train_samples", "300", "--max_steps", "9"]) == 0
    record = json.loads(Path("out/rho.json").read_text())
    assert [entry["when"] for entry in record["looks"]] == ["before", "before", "after", "after"]
    assert all(len(entry["radii"]) == 4 for entry in record["looks"])
    assert record["warm_up"] == 2
    assert record["looks"][2]["step"] == 4
    assert Path("out/rho.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    shown = capsys.readouterr().out
    assert "where steps are sharpness-aware" in shown
    assert "LE-SAM" in shown
    assert "rhorange" not in METHODS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RECIPE (the first argument) or --script"),
        (["digits-vit", "--points", "1"], "--points 1: must be at least 3"),
        (["digits-vit", "--lowest", "1", "--highest", "0.5"], "must be 0 < lowest < highest"),
        (["digits-vit", "--no_such", "1"], "unknown flag '--no_such'"),
        (["--script", "none.py"], "no such file"),
        (["digits-vit", "--", "--x"], "are a script's"),
        (["digits-vit", "--max_steps", "4"], "the training has 4: use fewer --batches"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rho_cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_options_of_the_training_say_nothing(tmp_path: Path) -> None:
    """Which steps are sharpness-aware, and rho from step to step; they are as before afterwards."""
    options = {"sam_start": 0.8, "sam_stop": 0.9, "sam_rho_schedule": "linear"}
    args = TrainingArguments(str(tmp_path), optim="sam", max_steps=8, use_cpu=True, report_to="none", **options)
    trainer = Trainer(model=Net(), args=args, train_dataset=classification(80, torch.float32))
    record = range_test(trainer, Wish(RADII, batches=1, warm_up=2))
    assert [entry["step"] for entry in record["looks"]] == [0, 1, 4, 5]
    assert {name: getattr(args, name) for name in options} == options
    assert args.optim == "sam"


@pytest.mark.slow
def test_the_command_on_a_script(tmp_path: Path) -> None:
    """The script is stopped after its warm-up: it evaluates nothing, and leaves nothing."""
    script = Path(__file__).parents[1] / "compare" / "script.py"
    options = ["--batches", "1", "--warm_up", "2", "--points", "3", "--output_dir", "out"]
    command = [sys.executable, "-m", "hf_sharpness", "rho", "--script", str(script), *options, "--", "--hidden", "4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "rho.json").read_text())
    assert record["learning_rate"] == 0.01
    assert [entry["step"] for entry in record["looks"]] == [0, 1, 4, 5]
    assert "eval_accuracy" not in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    refused = subprocess.run([*command[:4], "--script", str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "the training has 8: use fewer --batches" in refused.stderr
