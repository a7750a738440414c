"""What the Trainer logs and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from models import Record as Seen
from reference import BASES, Record, Spec, by_name, linear_schedule, reference_run

ITEMS = classification(64)
METHODS = by_name("sam", "asam", "sam-k3", "wsam-coupled", "wsam-decoupled", "wsam-preconditioned", "xsam", "xsam-k3")
every_method = pytest.mark.parametrize("spec", METHODS, ids=str)
ARGUMENTS = {
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 1,
}
SERIES = {
    "loss": lambda handed: handed.loss,
    "perturbed_loss": lambda handed: handed.perturbed_loss,
    "sharpness": lambda handed: handed.perturbed_loss - handed.loss,
    "ascent_grad_norm": lambda handed: handed.ascent_grad_norm,
    "perturbation_norm": lambda handed: handed.perturbation_norm,
    "xsam_alpha": lambda handed: handed.alpha,
    "xsam_psi": lambda handed: handed.psi,
}


def expected(spec: Spec) -> list[Record]:
    base, steps = BASES[1], steps_of(ITEMS, 8, accumulation=2, epochs=2)
    lrs = linear_schedule(base.lr, 1, len(steps))
    return reference_run(Net(), steps, spec.reference(), base.reference(0.0), lrs, 0.5, epoch_starts=(0, 4))


@every_method
def test_series_are_the_references(spec: Spec, train: Any) -> None:
    run = train(Net().double(), ITEMS, **ARGUMENTS | spec.arguments() | BASES[1].arguments() | {"weight_decay": 0.0})
    records = expected(spec)
    for key, value in SERIES.items():
        if key.startswith("xsam") and spec.method != "xsam":
            assert not run.series(key)
            continue
        torch.testing.assert_close(
            run.series(key),
            [value(record.handed) for record in records],
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, key=key: f"{key}: {m}",
        )
    ratios = [record.step_ratio for record in records if record.step_ratio == record.step_ratio]
    if spec.settings.get("mode") in ("decoupled", "preconditioned"):
        # undefined in the first step, whose learning rate is 0
        torch.testing.assert_close(run.series("wsam_step_ratio")[-7:], ratios[-7:], rtol=1e-4, atol=1e-5)
        assert all(ratio == ratio for ratio in run.series("wsam_step_ratio"))
    else:
        assert not run.series("wsam_step_ratio")


@every_method
def test_series_are_means_over_the_logging_steps(spec: Spec, train: Any) -> None:
    """As the Trainer's loss is; so sharpness stays the difference of the two losses."""
    arguments = ARGUMENTS | spec.arguments() | BASES[1].arguments()
    runs = [train(Net().double(), ITEMS, **arguments, logging_steps=steps) for steps in (1, 4)]
    for key in ("loss", "perturbed_loss", "sharpness", "ascent_grad_norm"):
        every, fourth = torch.tensor(runs[0].series(key)), torch.tensor(runs[1].series(key))
        torch.testing.assert_close(fourth, every.reshape(-1, 4).mean(1), rtol=1e-4, atol=1e-5)
    for key in ("perturbation_norm", "wsam_step_ratio"):  # read all weights, hence of the logged steps alone
        torch.testing.assert_close(runs[1].series(key), runs[0].series(key)[::-4][::-1], rtol=1e-4, atol=1e-5)
    for entry in runs[1].trainer.state.log_history[:-1]:
        assert entry["sharpness"] == pytest.approx(entry["perturbed_loss"] - entry["loss"], abs=1e-4)


@every_method
def test_series_reach_evaluation_free_entries_only(spec: Spec, train: Any) -> None:
    """Entries of an evaluation and the summary at the end carry none of them."""
    run = train(
        Net().double(),
        ITEMS,
        **ARGUMENTS | spec.arguments() | BASES[1].arguments(),
        eval_strategy="epoch",
        trainer_options={"eval_dataset": ITEMS[:8]},
    )
    for entry in run.trainer.state.log_history:
        assert ("sharpness" in entry) == ("loss" in entry)


def test_logged_without_a_step_in_between(train: Any) -> None:
    """`logging_nan_inf_filter` and friends aside, a run shorter than `logging_steps` logs nothing odd."""
    run = train(Net().double(), ITEMS, optim="sam", max_steps=3, logging_steps=10)
    assert not run.series("sharpness")


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ({"optim": "adamw_torch"}, 1),
        ({"optim": "wsam", "wsam_gamma": 0.0}, 1),
        ({"optim": "sam"}, 2),
        ({"optim": "sam", "sam_scope": "micro_batch"}, 2),
        ({"optim": "sam", "sam_steps": 3}, 4),
        ({"optim": "wsam", "wsam_mode": "coupled"}, 2),
        ({"optim": "wsam", "wsam_mode": "decoupled"}, 2),
        ({"optim": "xsam", "xsam_alpha": 1.0}, 2),
        ({"optim": "xsam", "xsam_alpha_points": 6}, 2 + 6 / 3 / 4),
    ],
    ids=str,
)
def test_total_flos_count_every_pass_and_tokens_once(arguments: dict[str, Any], passes: float, train: Any) -> None:
    """A search is made once in the four steps of each epoch; a probe is a forward pass, a third of a whole one."""
    run = train(Net().double(), ITEMS, **ARGUMENTS | arguments, include_num_input_tokens_seen="all")
    stock = train(
        Net().double(), ITEMS, stock=True, **ARGUMENTS, optim="adamw_torch", include_num_input_tokens_seen="all"
    )
    assert stock.trainer.state.total_flos > 0
    assert run.trainer.state.total_flos == pytest.approx(passes * stock.trainer.state.total_flos)
    assert run.trainer.state.num_input_tokens_seen == stock.trainer.state.num_input_tokens_seen == 2 * 64 * 6


@pytest.mark.parametrize(
    ("refresh", "expected"),
    [("epoch", [0, 4, 8]), (1, list(range(12))), (3, [0, 3, 6, 9]), (5, [0, 5, 10])],
    ids=str,
)
def test_when_alpha_is_searched(refresh: str | int, expected: list[int], train: Any) -> None:
    """Seen by the forward passes without gradient."""
    record = Seen()  # no pass takes back what another noted there
    probes: list[int] = record.items
    step = 0

    class Probed(Net):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and not torch.is_grad_enabled():
                record.items.append(step)
            return super().features(x)

    from transformers import TrainerCallback

    class Counter(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            nonlocal step
            step += 1

    arguments = ARGUMENTS | {"optim": "xsam", "xsam_search": "grid", "xsam_refresh": refresh, "num_train_epochs": 3}
    train(Probed().double(), ITEMS, callbacks=[Counter()], **arguments)
    assert sorted(set(probes)) == expected
    assert len(probes) == len(expected) * 21 * 2


def test_a_plain_step_has_no_series(train: Any) -> None:
    """Steps 3 and 4 are the base optimizer's (gamma 0): the mean of four steps is that of the first two."""
    from transformers import TrainerCallback

    class Plain(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                args.wsam_gamma = 0.0

    arguments = {"max_steps": 4, "optim": "wsam", "sam_rho": 0.3, "base_optim": "sgd", "wsam_mode": "coupled"}
    single = train(Net().double(), ITEMS, callbacks=[Plain()], **arguments)
    run = train(Net().double(), ITEMS, callbacks=[Plain()], **arguments | {"logging_steps": 4})
    assert len(single.series("perturbation_norm")) == 2
    assert run.series("perturbation_norm") == [], "which is measured in the logged step, a plain one"
    for key in ("perturbed_loss", "sharpness", "ascent_grad_norm"):
        first, second = single.series(key)
        assert first != second
        assert run.series(key) == [pytest.approx((first + second) / 2, rel=1e-5)]
