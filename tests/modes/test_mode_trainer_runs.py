"""Several runs of a Trainer, each with every method: again, nested, searched, generating, resumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import Batch, MaskRecorder, Net
from reference import Spec, flat
from specs_of_modes import named
from torch import nn
from trainer_modes import ITEMS, SGD, as_stock, by_method

import hf_sharpness

# Several runs.


@as_stock
@pytest.mark.shows(mode="train() again on one trainer: rho 0 = stock", result="exact")
def test_training_again_is_stock_at_rho_0(spec: Spec, train: Any) -> None:
    runs = []
    for stock in (True, False):
        arguments = {} if stock else spec.arguments() | {"sam_rho": 0.0}
        run = train(Net(lambda: MaskRecorder(0.3)), ITEMS, stock=stock, max_steps=3, **arguments)
        run.trainer.train()
        run.trainer.train()
        runs.append(run)
    assert len(runs[0].weights) == len(runs[1].weights) == 9
    assert all(torch.equal(a, b) for a, b in zip(runs[0].weights, runs[1].weights, strict=True))


@by_method
@pytest.mark.shows(mode="train() again on one trainer", result="exact")
def test_training_again(spec: Spec, train: Any) -> None:
    """The second run makes the steps a new trainer makes with the same model and optimizer; no hook is left behind."""
    arguments = {"max_steps": 3} | SGD | spec.arguments()
    again = train(Net(), ITEMS, **arguments)
    first = again.weights[-1]
    optimizer = again.trainer.optimizer.optimizer
    state = {k: v.clone() for k, v in again.model.state_dict().items()}
    moments = {"state": optimizer.state_dict()["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    moments = torch.utils._pytree.tree_map(lambda t: t.clone() if torch.is_tensor(t) else t, moments)
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    again.trainer.train()

    model = Net()
    model.load_state_dict(state)
    assert torch.equal(flat(model), first)

    class Continued(hf_sharpness.Trainer):
        def create_optimizer(self, *args: Any) -> Any:
            made = super().create_optimizer(*args)
            made.load_state_dict(moments)
            return made

    fresh = train(model, ITEMS, **arguments, trainer_class=Continued)
    assert torch.equal(fresh.weights[-1], again.weights[-1])


@by_method
@pytest.mark.shows(mode="Two trainers in one process, one within the other", result="exact")
def test_two_trainers(spec: Spec, train: Any) -> None:
    """A second trainer trains in the middle of the first one's run: both as if they were alone."""
    arguments = {"max_steps": 3, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    other = named("wsam-decoupled").arguments() | SGD | {"max_steps": 2}
    alone = [train(Net(), ITEMS, **arguments), train(Net(), ITEMS[32:], **other)]

    class Within(transformers.TrainerCallback):
        run: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                self.run = train(Net(), ITEMS[32:], **other)

    within = Within()
    both = [train(Net(), ITEMS, **arguments, callbacks=[within]), within.run]
    for a, b in zip(alone, both, strict=True):
        assert torch.equal(a.weights[-1], b.weights[-1])


# Hyper-parameter search.


@pytest.mark.shows(
    mode="hyperparameter_search (optuna) over sam_rho and wsam_gamma", result="exact", method="WSAM coupled"
)
def test_hyperparameter_search_is_the_plain_runs(train: Any, tmp_path: Any) -> None:
    """The loss of every trial is bit for bit that of a run with its values, and the best is the best."""
    trials = search_with_optuna(train, tmp_path)
    assert len({loss for _, loss in trials}) == 4
    for values, loss in trials:
        arguments = {"optim": "wsam", "wsam_mode": "coupled", "max_steps": 3} | SGD | values
        run = train(Net(), ITEMS, **arguments, trainer_options={"eval_dataset": ITEMS})
        assert run.trainer.evaluate()["eval_loss"] == loss


def search_with_optuna(train: Any, tmp_path: Any) -> list[tuple[dict[str, float], float]]:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid = {"sam_rho": [0.05, 0.4], "wsam_gamma": [0.2, 0.7]}
    run = train(Net(), ITEMS, optim="wsam", wsam_mode="coupled", max_steps=3, **SGD)
    run.trainer.model_init = lambda: Net()
    run.trainer.eval_dataset = ITEMS
    trials: list[tuple[dict[str, float], float]] = []

    def objective(metrics: dict[str, float]) -> float:
        trials.append(({name: getattr(run.trainer.args, name) for name in grid}, metrics["eval_loss"]))
        return metrics["eval_loss"]

    best = run.trainer.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_float(name, *values) for name, values in grid.items()},
        compute_objective=objective,
        n_trials=4,
        direction="minimize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler(grid),
    )
    assert best.hyperparameters == dict(trials[min(range(4), key=lambda n: trials[n][1])][0])
    return trials


def test_hyperparameter_search_rejects_a_value_out_of_range(train: Any) -> None:
    """A trial with gamma 1 does not train silently with something else."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = train(Net(), ITEMS, optim="wsam", max_steps=2, **SGD)
    run.trainer.model_init = lambda: Net()
    with pytest.raises(ValueError, match="gamma"):
        run.trainer.hyperparameter_search(
            hp_space=lambda trial: {"wsam_gamma": trial.suggest_float("wsam_gamma", 1.0, 1.0)},
            n_trials=1,
            backend="optuna",
        )


# Sequence to sequence.


def t5(dropout: float = 0.1) -> nn.Module:
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": dropout}
    config = transformers.T5Config(vocab_size=32, decoder_start_token_id=0, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.T5ForConditionalGeneration(config)


def pairs() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, 32, (6,), generator=generator) for _ in range(24)]
    return [{"input_ids": row, "labels": row.flip(0)} for row in rows]


GENERATING = {
    "max_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "predict_with_generate": True,
    "generation_max_length": 5,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
}


def seq2seq(library: Any, **options: Any) -> dict[str, Any]:
    classes = {"trainer_class": library.Seq2SeqTrainer, "arguments_class": library.Seq2SeqTrainingArguments}
    return classes | GENERATING | {"trainer_options": {"eval_dataset": pairs()[:8]}} | options


@as_stock
@pytest.mark.shows(mode="Seq2SeqTrainer with predict_with_generate: rho 0 = stock", result="exact")
def test_seq2seq_is_stock_at_rho_0(spec: Spec, train: Any) -> None:
    """T5 with dropout; also the tokens generated in evaluation."""
    generated: dict[str, list] = {"stock": [], "ours": []}
    runs = {}
    for name, library, extra in (
        ("stock", transformers, {"stock": True}),
        ("ours", hf_sharpness, spec.arguments() | {"sam_rho": 0.0}),
    ):
        options = seq2seq(library)
        options["trainer_options"]["compute_metrics"] = lambda p, seen=generated[name]: seen.append(p.predictions) or {}
        runs[name] = train(t5(), pairs(), **options, **extra)
    assert all(torch.equal(a, b) for a, b in zip(runs["stock"].weights, runs["ours"].weights, strict=True))
    assert len(generated["stock"]) == 2
    for a, b in zip(generated["stock"], generated["ours"], strict=True):
        assert (a == b).all()


@by_method
@pytest.mark.shows(
    mode="Seq2SeqTrainer with predict_with_generate", brief="Seq2SeqTrainer with generation", result="clean"
)
def test_seq2seq_generates_with_clean_weights(spec: Spec, train: Any) -> None:
    """Generation in the middle of training changes nothing in it: the run is the one that never evaluated."""
    options = seq2seq(hf_sharpness) | SGD | {"optim_args": None} | spec.arguments()
    evaluated = train(t5(0.0), pairs(), **options)
    silent = train(t5(0.0), pairs(), **options | {"eval_strategy": "no"})
    assert torch.equal(evaluated.weights[-1], silent.weights[-1])
    assert evaluated.series("eval_loss")


# Callback states restored from a checkpoint.


@by_method
@pytest.mark.shows(mode="restore_callback_states_from_checkpoint", result="exact")
def test_resume_with_restored_callbacks(spec: Spec, train: Any, checkpoint: Any, capsys: Any) -> None:
    """transformers then makes the callbacks anew: the run goes on bit for bit, and logs what it logged."""
    arguments = {"num_train_epochs": 3, "restore_callback_states_from_checkpoint": True} | SGD | spec.arguments()
    through = train(Net(), ITEMS, **arguments, save_strategy="steps", save_steps=5)
    folder = checkpoint(10)
    capsys.readouterr()
    resumed = train(Net(), ITEMS, **arguments, resume=folder)
    assert capsys.readouterr().err.lower().count("on sgd; ") == 1, "it says once what it does"
    assert torch.equal(resumed.weights[-1], through.weights[-1])
    logs = [[entry for entry in run.trainer.state.log_history if "loss" in entry] for run in (resumed, through)]
    assert logs[0] == logs[1]
    assert all("perturbation_norm" in entry for entry in logs[0])
