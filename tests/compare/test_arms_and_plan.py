"""What is compared: arms from a command line or a file, base arms for every cost, the same points for all."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from studies import a_method_from_outside, a_plan

from hf_sharpness.compare.arms import Arm, settings_of, sharpness_arms, swept, with_base_arms
from hf_sharpness.compare.budget import duration, expected_seconds, fit, parse_duration, power_in_words
from hf_sharpness.compare.errors import CompareError
from hf_sharpness.compare.plan import Length, Plan, protocol_deviations
from hf_sharpness.compare.points import UNTUNED, sobol_points


def test_arms_of_a_command_line():
    arms = sharpness_arms("base,sam,wsam", {"sam_rho": (0.1, 0.2), "wsam_gamma": (0.5,)}, {"sam_steps": 2}, "sgd")
    assert [arm.name for arm in arms] == ["sam", "wsam"]
    assert arms[0].arguments == {"optim": "sam", "base_optim": "sgd", "sam_steps": 2}
    assert arms[0].choices == {"sam_rho": (0.1, 0.2)}
    assert arms[1].arguments["wsam_gamma"] == 0.5  # one value is no choice
    assert settings_of(arms[0]) == [{"sam_rho": 0.1}, {"sam_rho": 0.2}]


def test_a_part_of_the_batch_goes_with_the_methods_that_allow_it():
    sam, xsam = sharpness_arms("sam,xsam", {}, {"sam_fraction": 0.25, "sam_target_modules": "norm"}, "sgd")
    assert (sam.arguments["sam_fraction"], sam.arguments["sam_target_modules"]) == (0.25, "norm")
    assert "sam_fraction" not in xsam.arguments
    assert xsam.arguments["sam_target_modules"] == "norm"


def test_rho_is_tuned_where_nothing_is_said():
    for arm in sharpness_arms(None, {}, {"sam_rho": 0.3}, "sgd"):
        assert arm.choices == {"sam_rho": (0.01, 0.02, 0.05)}


def test_the_rho_of_asam_is_tuned_over_its_own_range(tmp_path):
    """Ten times SAM's, where the arm, the command line or the recipe says that it is ASAM."""
    file = tmp_path / "arms.yaml"
    file.write_text("sam: {optim: sam}\nasam: {optim: sam, sam_adaptive: true}\n")
    sam, asam = sharpness_arms(str(file), {}, {}, "sgd")
    assert sam.choices == {"sam_rho": (0.01, 0.02, 0.05)}
    assert asam.choices == {"sam_rho": (0.1, 0.2, 0.5)}
    for choices, own in (({"sam_adaptive": [True]}, {}), ({}, {"sam_adaptive": True})):
        assert sharpness_arms("sam", choices, own, "sgd")[0].choices == {"sam_rho": (0.1, 0.2, 0.5)}
    assert sharpness_arms("sam", {"sam_rho": [0.3]}, {"sam_adaptive": True}, "sgd")[0].arguments["sam_rho"] == 0.3


def test_one_arm_does_not_tune_sam_and_asam_over_one_range(tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text("both: {optim: sam, sam_adaptive: [true, false]}\n")
    with pytest.raises(
        CompareError, match=r"the arm 'both' tries settings whose sam_rho is in different units .*0\.05"
    ):
        sharpness_arms(str(file), {}, {}, "sgd")
    assert sharpness_arms(str(file), {"sam_rho": [0.05, 0.5]}, {}, "sgd")[0].choices["sam_rho"] == (0.05, 0.5)


def test_so_is_the_length_of_a_method_from_outside():
    """By its own default; a recipe's one value is not tuned; a method without a length has no such choice."""
    with a_method_from_outside() as far:
        (arm,) = sharpness_arms("far", {}, {"far_rho": 9.0}, "sgd")
        assert arm.choices == {"far_rho": pytest.approx((0.4, 0.8, 2.0))}
        (arm,) = sharpness_arms("far", {"far_rho": (3.0,)}, {}, "sgd")
        assert (arm.choices, arm.arguments["far_rho"]) == ({}, 3.0)
        far.radii = ()
        (arm,) = sharpness_arms("far", {}, {}, "sgd")
        assert (arm.choices, arm.arguments) == ({}, {"optim": "far", "base_optim": "sgd"})


def test_arms_of_a_file(tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text("asam: {optim: sam, sam_adaptive: true, sam_rho: [.5, 1.]}\nfixed: {optim: wsam, sam_rho: .02}\n")
    asam, fixed = sharpness_arms(str(file), {}, {}, "adamw_torch")
    assert (asam.name, asam.arguments["sam_adaptive"], asam.choices) == ("asam", True, {"sam_rho": (0.5, 1.0)})
    assert (fixed.arguments["sam_rho"], fixed.choices) == (0.02, {})


@pytest.mark.parametrize(
    ("spec", "choices", "words"),
    [
        ("sma", {}, ["'sma'", "sam"]),
        ("base", {}, ["at least one"]),
        ("sam", {"wsam_gamma": (0.5,)}, ["--wsam_gamma", "no arm"]),
        ("nowhere.yaml", {}, ["nowhere.yaml", "cannot be read"]),
    ],
)
def test_a_mistake_in_the_arms(spec, choices, words):
    with pytest.raises(CompareError) as raised:
        sharpness_arms(spec, choices, {}, "adamw_torch")
    assert all(word in str(raised.value) for word in words)


def test_a_mistake_in_a_file_of_arms(tmp_path):
    (tmp_path / "arms.yaml").write_text("x: {optim: sam, wsam_gamma: .5}\n")
    with pytest.raises(CompareError, match="'wsam_gamma' is no argument of sam"):
        sharpness_arms(str(tmp_path / "arms.yaml"), {}, {}, "adamw_torch")


def priced(**costs: float) -> list[Arm]:
    return [Arm(name, "sharpness", {"optim": "sam"}, cost=cost) for name, cost in costs.items()]


def test_three_base_arms_and_one_at_equal_passes_for_arms_that_cost_nearly_the_same():
    arms = {arm.name: arm for arm in with_base_arms(priced(sam=2.0, xsam=2.17), "sgd", True)}
    assert list(arms) == ["base", "base-2.2x", "averaged", "sam", "xsam"]
    assert arms["base-2.2x"].cap == 2.17
    assert arms["sam"].bases == arms["xsam"].bases == ("base", "base-2.2x", "averaged")
    assert arms["averaged"].bases == ("base", "base-2.2x")


def test_arms_of_other_costs_have_base_arms_of_their_own():
    arms = {arm.name: arm for arm in with_base_arms(priced(cheap=1.05, sam=2.0, deep=4.0), "sgd", True)}
    assert arms["cheap"].bases == ("base", "averaged-1.1x")
    assert arms["sam"].bases == ("base", "base-2x", "averaged-2x")
    assert arms["deep"].bases == ("base", "base-4x", "averaged-4x")
    assert arms["averaged-2x"].bases == ("base", "base-2x")


def test_without_averages_and_with_a_name_that_is_taken():
    assert with_base_arms(priced(sam=2.0), "sgd", False)[-1].bases == ("base", "base-2x")
    with pytest.raises(CompareError, match="'averaged' is the name of a base arm"):
        with_base_arms(priced(averaged=2.0), "sgd", True)


def test_the_points_are_the_same_for_all_and_within_their_ranges():
    plan = a_plan("sam,wsam", trials=6)
    assert list(plan.points) == sobol_points(6, plan.arms)
    rates = [point.learning_rate(1e-3) for point in plan.points]
    assert len(set(rates)) == 6
    assert min(rates) >= 1e-3 / 3
    assert max(rates) <= 3e-3
    assert all(0.25 <= point.share() <= 1 for point in plan.points)
    for number in range(6):
        sam, wsam, base, longer = (plan.arguments(arm, number) for arm in ("sam", "wsam", "base", "base-2x"))
        assert sam["learning_rate"] == wsam["learning_rate"] == base["learning_rate"] == rates[number]
        assert sam["max_steps"] == base["max_steps"]  # the same steps, twice the passes
        assert longer["max_steps"] == pytest.approx(2 * base["max_steps"], abs=1)
        assert sam["sam_rho"] == wsam["sam_rho"]
        assert "sam_rho" not in base
    assert {plan.arguments("sam", number)["sam_rho"] for number in range(6)} == {0.01, 0.05}


def test_a_sweep_makes_an_arm_of_every_setting():
    (arm,) = sharpness_arms("wsam", {"sam_rho": (0.02, 0.5), "wsam_gamma": (0.3, 1e-05)}, {}, "adamw_torch")
    arms = swept([arm, *sharpness_arms("sam", {"sam_rho": (0.05,)}, {}, "adamw_torch")])
    names = ["wsam-rho.02-gamma.3", "wsam-rho.02-gamma1e-05", "wsam-rho.5-gamma.3", "wsam-rho.5-gamma1e-05", "sam"]
    assert sorted(arm.name for arm in arms) == sorted(names)
    assert not any(arm.choices for arm in arms)
    found = next(arm for arm in arms if arm.name == "wsam-rho.5-gamma.3")
    assert (found.arguments["sam_rho"], found.arguments["wsam_gamma"]) == (0.5, 0.3)


def test_a_sweep_trains_with_the_recipe_s_own_setting():
    plan = a_plan("sam", points=(UNTUNED,), tuning_seeds=())
    assert not plan.tuned
    assert plan.tuning_runs() == []
    assert plan.arguments("base-2x", 0) == {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 200}


def test_lengths():
    assert Length("max_steps", 10.0).times(0.26) == {"max_steps": 3}
    assert Length("max_steps", 1.0).times(0.25) == {"max_steps": 1}
    assert Length("num_train_epochs", 3.0).times(0.5) == {"num_train_epochs": 1.5}


def test_the_runs_of_a_plan():
    plan = a_plan("sam,wsam", trials=6, tuning=2, seeds=8)
    tuning = plan.tuning_runs()
    assert len({run.key for run in tuning}) == len(tuning) == 6 * 2 * 4
    finals = plan.final_runs({arm.name: 3 for arm in plan.arms})
    assert len(finals) == 8 * 4
    assert not {run.seed for run in tuning} & {run.seed for run in finals}
    assert [run.arm for run in finals[:4]] == ["base", "base-2x", "sam", "wsam"]  # taking turns
    assert {run.seed for run in finals[:4]} == {0}


def test_a_plan_goes_through_json():
    plan = a_plan("sam,wsam", deviations=("x",))
    assert Plan.from_json(plan.to_json()) == plan


def test_deviations_in_words():
    assert protocol_deviations(6, 2, 8) == ()
    assert protocol_deviations(3, 2, 5, ["more"]) == (
        "3 tuning points instead of 6",
        "5 final seeds instead of 8",
        "more",
    )


@pytest.mark.parametrize(("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("60", 60)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0h", "1d", "h", "-1h"])
def test_no_durations(text):
    with pytest.raises(CompareError, match="--budget"):
        parse_duration(text)


def test_durations_in_words():
    assert [duration(seconds) for seconds in (0.2, 29, 61, 3599, 7380)] == [
        "1 s",
        "29 s",
        "1 min",
        "1 h 00 min",
        "2 h 03 min",
    ]


def test_the_expected_time_is_that_of_all_steps():
    plan = a_plan("sam", trials=1, tuning=1, seeds=2)
    share = plan.points[0].share()
    steps = 100 * share * (1 + 2 + 1)  # base, base-2x, sam
    assert expected_seconds(plan) == pytest.approx(3 * (0.01 * steps + 3 * 0.1))


def test_a_budget_cuts_points_first_then_seeds_and_says_what_that_costs():
    def build(trials: int, seeds: int) -> Plan:
        return a_plan("sam,wsam,xsam", trials=trials, seeds=seeds)

    whole = expected_seconds(build(6, 8))
    assert fit(build, 6, 8, whole, 1).cut == ()
    fewer = fit(build, 6, 8, 0.8 * whole, 1)
    assert (len(fewer.plan.points) < 6, len(fewer.plan.final_seeds)) == (True, 8)
    assert "tuning points from 6 to" in fewer.cut[0]
    least = fit(build, 6, 8, expected_seconds(build(2, 7)), 1)
    assert (len(least.plan.points), len(least.plan.final_seeds)) == (2, 7)
    assert "standard deviations" in least.cut[1]
    assert len(fit(build, 6, 8, 0.5 * whole, 2).plan.points) == 6  # two at a time
    with pytest.raises(CompareError, match="too little"):
        fit(build, 6, 8, 1.0, 1)


def test_power_in_words():
    assert power_in_words(6, 3) == "6 seeds can decide nothing between 3 arms and the base; it takes 7"
    assert power_in_words(2, 1) == "2 seeds can decide nothing between an arm and the base; it takes 6"
    assert power_in_words(8, 1).startswith("8 seeds find 1.2 standard deviations")
