"""The Trainer's own features, each with every method: the run must not notice that there is a second pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers
from models import Batch, MaskRecorder, Net, Saboteur, classification, collate
from reference import Spec, flat, reference_run
from specs_of_modes import BASE, MAX_NORM, METHODS, named, without_decay
from torch import nn
from torch.utils.data import IterableDataset

import hf_sharpness

by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
as_stock = pytest.mark.parametrize("spec", [named("sam"), named("wsam-decoupled")], ids=str)
ITEMS = classification(64, torch.float32)
SGD = BASE.arguments()


def assert_stock_at_rho_0(train: Any, spec: Spec, model: nn.Module, items: Any, **options: Any) -> None:
    """With the replays really made, every step is bit for bit the stock Trainer's, and so is what is logged."""
    stock_options = {k.removeprefix("stock_"): v for k, v in options.items()}
    ours_options = {k: v for k, v in options.items() if not k.startswith("stock_")}
    stock = train(model, items, stock=True, **stock_options)
    ours = train(model, items, **ours_options | spec.arguments() | {"sam_rho": 0.0})
    assert len(stock.weights) == len(ours.weights) > 0
    assert all(torch.equal(a, b) for a, b in zip(stock.weights, ours.weights, strict=True))
    assert stock.series("loss") == ours.series("loss")
    assert set(ours.series("sharpness")) == {0.0}


# torch.compile, gradient checkpointing.


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@by_method
@pytest.mark.shows(mode="torch.compile ({backend})", brief="`torch_compile`, {backend}", result="within rounding")
def test_compiled(spec: Spec, backend: str, train: Any) -> None:
    torch._dynamo.reset()
    arguments = SGD | spec.arguments() | {"max_steps": 3, "gradient_accumulation_steps": 2}
    eager = train(Net(), ITEMS, **arguments)
    compiled = train(Net(), ITEMS, **arguments, torch_compile=True, torch_compile_backend=backend)
    for a, b in zip(eager.weights, compiled.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def bert() -> nn.Module:
    """A tiny transformer with dropout."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=2, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config)


def documents(count: int = 32) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 30, (8,), generator=generator) for _ in range(count)]
    return [{"input_ids": row, "labels": row[0] % 2} for row in rows]


@pytest.mark.parametrize("reentrant", [True, False])
@by_method
@pytest.mark.shows(
    mode="Gradient checkpointing, reentrant: {reentrant}", brief="Gradient checkpointing, both variants", result="exact"
)
def test_gradient_checkpointing(spec: Spec, reentrant: bool, train: Any) -> None:
    """With dropout: the run is bit for bit the one without checkpointing."""
    arguments = SGD | spec.arguments() | {"max_steps": 3, "gradient_accumulation_steps": 2}
    arguments["per_device_train_batch_size"] = 4
    whole = train(bert(), documents(), **arguments)
    parts = train(
        bert(),
        documents(),
        **arguments,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, parts.weights, strict=True))


# Out of memory.


def out_of_memory_at(number: int) -> Net:
    def forward(n: int) -> None:
        if n == number:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return Net(lambda: Saboteur(on_forward=forward))


@by_method
@pytest.mark.shows(
    mode="auto_find_batch_size, out of memory in the replay",
    brief="`auto_find_batch_size`, out of memory in the replay",
    result="exact",
)
def test_out_of_memory_in_the_replay(spec: Spec, train: Any) -> None:
    """The run is bit for bit the one that began with the batch size which is found."""
    arguments = {"max_steps": 5, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    run = train(out_of_memory_at(3), ITEMS, **arguments, auto_find_batch_size=True)  # the first forward of the replay
    size = run.trainer._train_batch_size
    assert size < 8
    fresh = train(Net(), ITEMS, **arguments, per_device_train_batch_size=size)
    assert len(run.weights) == len(fresh.weights) == 5
    assert all(torch.equal(a, b) for a, b in zip(run.weights, fresh.weights, strict=True))


def test_out_of_memory_starts_the_search_anew(train: Any) -> None:
    """What an attempt with a larger batch found is not taken over: the next attempt searches in its first step."""
    spec, searched = named("xsam"), []
    from hf_sharpness.methods import XSAM

    class Noting(XSAM):
        def find_alpha(self, *args: Any) -> float | None:
            searched.append(self.steps_taken)
            return super().find_alpha(*args)

    class WithNoting(hf_sharpness.TrainingArguments):
        def method(self) -> Any:
            made = super().method()
            made.__class__ = Noting
            return made

    arguments = {"max_steps": 4, "xsam_refresh": 3, "xsam_search": "grid"} | SGD | spec.arguments()
    run = train(out_of_memory_at(26), ITEMS, arguments_class=WithNoting, **arguments, auto_find_batch_size=True)
    assert len(run.weights) > 4, "the error came in a later step"
    assert searched == [0, 0, 3]


# Data and sampling.


class Stream(IterableDataset):
    def __init__(self, items: list[Batch]):
        self.items = items

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.items)


@as_stock
@pytest.mark.shows(
    mode="IterableDataset, max_steps, epochs that end within an accumulation: rho 0 = stock", result="exact"
)
def test_stream_is_stock_at_rho_0(spec: Spec, train: Any) -> None:
    """Five micro-batches an epoch, two a step: the fifth waits for the first of the next epoch, as in stock."""
    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    assert_stock_at_rho_0(train, spec, Net(), Stream(ITEMS[:20]), **options)


@by_method
@pytest.mark.shows(mode="IterableDataset, max_steps = the same items in a list", result="exact")
def test_stream_is_a_list(spec: Spec, train: Any) -> None:
    arguments = {"max_steps": 6, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    runs = [train(Net(), items, **arguments) for items in (Stream(ITEMS), ITEMS)]
    assert torch.equal(runs[0].weights[-1], runs[1].weights[-1])


def waiting_losses(model: nn.Module, micro_batches: Sequence[Batch]) -> list[torch.Tensor]:
    """As stock Trainer weighs them: a micro-batch alone at the end of the stream by 1, two together by 1/2 each."""
    weights = {1: [1.0], 2: [0.5, 0.5], 3: [1.0, 0.5, 0.5]}[len(micro_batches)]
    return [model(**batch)["loss"] * weight for batch, weight in zip(micro_batches, weights, strict=True)]


@by_method
@pytest.mark.shows(
    mode="IterableDataset, epochs that end within an accumulation", brief="IterableDataset", result="exact"
)
def test_stream_with_a_remainder(spec: Spec, train: Any) -> None:
    """What waits for the next epoch is part of the effective batch there: in every pass, for every method. XSAM
    searches in the first step of each of the three epochs."""
    base = without_decay(BASE)
    items = classification(20)
    arguments = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    arguments |= {"max_grad_norm": MAX_NORM} | base.arguments() | spec.arguments()
    run = train(Net().double(), Stream(items), **arguments)
    b = [collate(items[start : start + 4]) for start in range(0, 20, 4)]
    steps = [[b[0], b[1]], [b[2], b[3]], [b[4], b[0], b[1]], [b[2], b[3]], [b[4], b[0], b[1]], [b[2], b[3]]]
    records = reference_run(
        Net(), steps, spec.reference(), base.reference(), [base.lr] * 6, MAX_NORM, waiting_losses, (0, 2, 4)
    )
    for weights, record in zip(run.weights, records, strict=True):
        torch.testing.assert_close(weights, record.weights, rtol=0, atol=1e-9)


def uneven_sentences() -> list[dict[str, Any]]:
    return [{"input_ids": list(range(3 + 7 * n % 11)), "labels": n % 2} for n in range(40)]


def padded(items: list[dict[str, Any]]) -> Batch:
    longest = max(len(item["input_ids"]) for item in items)
    rows = [item["input_ids"] + [0] * (longest - len(item["input_ids"])) for item in items]
    return {"input_ids": torch.tensor(rows), "labels": torch.tensor([item["labels"] for item in items])}


@as_stock
@pytest.mark.shows(mode="train_sampling_strategy=group_by_length: rho 0 = stock", result="exact")
def test_group_by_length_is_stock_at_rho_0(spec: Spec, tmp_path: Any) -> None:
    runs = []
    for library, arguments in ((transformers, {}), (hf_sharpness, spec.arguments() | {"sam_rho": 0.0})):
        args = library.TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            train_sampling_strategy="group_by_length",
            per_device_train_batch_size=4,
            num_train_epochs=1,
            **arguments,
        )
        trainer = library.Trainer(bert(), args, train_dataset=uneven_sentences(), data_collator=padded)
        trainer.train()
        runs.append((flat(trainer.model), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


class Renamed(Net):
    """Its labels have another name."""

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(x, target)


@as_stock
@pytest.mark.shows(mode="label_names: rho 0 = stock", result="exact")
def test_label_names_are_stock_at_rho_0(spec: Spec, train: Any) -> None:
    items = [{"x": item["x"], "target": item["labels"]} for item in ITEMS]
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "trainer_options": {"eval_dataset": items[:16]}}
    assert_stock_at_rho_0(train, spec, Renamed(), items, max_steps=4, label_names=["target"], **evaluation)


# Noise, caches.


@as_stock
@pytest.mark.shows(mode="NEFTune: rho 0 = stock", result="exact")
def test_neftune_is_stock_at_rho_0(spec: Spec, train: Any) -> None:
    """Noise on the embeddings: the replay sees the noise of the first pass."""
    options = {"max_steps": 4, "neftune_noise_alpha": 5.0, "gradient_accumulation_steps": 2}
    assert_stock_at_rho_0(train, spec, bert(), documents(), **options, per_device_train_batch_size=4)


@by_method
@pytest.mark.shows(mode="torch_empty_cache_steps", result="exact")
def test_emptying_the_cache_changes_nothing(spec: Spec, train: Any) -> None:
    arguments = {"max_steps": 4, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    runs = [train(Net(), ITEMS, **arguments, **extra) for extra in ({}, {"torch_empty_cache_steps": 1})]
    assert torch.equal(runs[0].weights[-1], runs[1].weights[-1])


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
    options = seq2seq(hf_sharpness) | SGD | spec.arguments()
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
    assert capsys.readouterr().err.count("on sgd; ") == 1, "it says once what it does"
    assert torch.equal(resumed.weights[-1], through.weights[-1])
    logs = [[entry for entry in run.trainer.state.log_history if "loss" in entry] for run in (resumed, through)]
    assert logs[0] == logs[1]
    assert all("perturbation_norm" in entry for entry in logs[0])


def test_sentences_have_different_lengths() -> None:
    """Guards the length-grouping test."""
    assert len({len(item["input_ids"]) for item in uneven_sentences()}) > 3
