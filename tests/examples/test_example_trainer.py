"""The methods of examples/methods/ through the Trainer: flags, exact updates, checkpoints, configs, recipes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cases import EXAMPLES, Example
from models import BUFFERED, Net, classification, steps_of
from reference import BASES, Base, flat, linear_schedule, reference_run
from safetensors.torch import load_file
from torch import nn

import hf_sharpness

Register = Callable[[Example], str]
by_example = pytest.mark.parametrize("example", EXAMPLES, ids=str)
BASE = Base("adamw", lr=0.01)
KEEPING = [example for example in EXAMPLES if example.folder in ("friendly_sam", "looksam")]
SCRIPT = Path(__file__).parents[1] / "run" / "scripts" / "tiny.py"


@pytest.mark.parametrize("base", [Base("sgd-momentum", lr=0.05, momentum=0.9), BASE], ids=str)
@by_example
def test_exact_against_the_reference(example: Example, base: Base, registered: Register, train: Any) -> None:
    """Warm-up, linear schedule, clipping, accumulation."""
    registered(example)
    model, items = Net().double(), classification(64)
    steps = steps_of(items, 4, accumulation=2, epochs=4)
    run = train(
        model,
        items,
        **example.arguments | base.arguments(),
        lr_scheduler_type="linear",
        warmup_steps=3,
        max_grad_norm=0.5,
        num_train_epochs=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    rates = linear_schedule(base.lr, 3, len(steps))
    records = reference_run(model, steps, example.expected(rates), base.reference(), rates, max_norm=0.5)
    expected = torch.stack([record.weights for record in records])
    torch.testing.assert_close(torch.stack(run.weights), expected, rtol=1e-9, atol=1e-9)
    for name in example.method_class.metrics:
        assert len(run.series(name)) == len(steps)


RESUMED = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "shuffle": True,
    "save_strategy": "steps",
    "save_steps": 1,
}


def noisy() -> Net:
    return Net(lambda: nn.Sequential(nn.Dropout(0.3), BUFFERED["batch_norm_1d"]()))


@by_example
def test_resuming_is_bit_for_bit(example: Example, registered: Register, train: Any, checkpoint: Any) -> None:
    """From the middle of an epoch and from its end; only what is kept makes a file beside optimizer.pt."""
    registered(example)
    items = classification(80, torch.float32)
    arguments = RESUMED | example.arguments | BASES[2].arguments()
    whole = train(noisy(), items, **arguments)
    for step in (7, 10):
        files = {file.name for file in checkpoint(step).glob("sharpness_state*")}
        assert files == ({"sharpness_state_0.pt"} if example in KEEPING else set())
        torch.manual_seed(step)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*starts anew.*")
            rest = train(noisy(), items, resume=checkpoint(step), **arguments | {"save_strategy": "no"})
        assert all(torch.equal(a, b) for a, b in zip(rest.weights, whole.weights[step:], strict=True))
        assert rest.series("loss") == whole.series("loss")


def relaid(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save(state | {"layout": "4 ranks"}, file)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(relaid, "it was saved on 4 ranks, and this is 1 rank"), (Path.unlink, "there is none")],
)
@pytest.mark.parametrize("example", KEEPING, ids=str)
def test_what_cannot_be_taken_over_starts_anew_and_says_so(
    example: Example, spoil: Any, reason: str, registered: Register, train: Any, checkpoint: Any
) -> None:
    registered(example)
    items = classification(80, torch.float32)
    arguments = RESUMED | example.arguments | BASES[2].arguments()
    whole = train(noisy(), items, **arguments)
    spoil(checkpoint(7) / "sharpness_state_0.pt")
    name = example.method_class.name
    with pytest.warns(UserWarning, match=f"'{name}' keeps .* starts anew, as .*sharpness_state_0.pt .*: {reason}"):
        rest = train(noisy(), items, resume=checkpoint(7), **arguments | {"save_strategy": "no"})
    assert len(rest.weights) == 8
    assert rest.weights[-1].isfinite().all()
    assert not torch.equal(rest.weights[-1], whole.weights[-1])


@pytest.mark.parametrize("example", KEEPING, ids=str)
def test_a_second_training_keeps_nothing_of_the_first(example: Example, registered: Register, train: Any) -> None:
    registered(example)
    arguments = example.arguments | BASES[0].arguments()  # an optimizer without a state that goes on
    run = train(Net(), classification(48, torch.float32), num_train_epochs=1, **arguments)
    first = run.weights[:]
    run.weights.clear()
    run.model.load_state_dict(Net().state_dict())
    run.trainer.train()
    assert all(torch.equal(one, other) for one, other in zip(first, run.weights, strict=True))


@by_example
def test_a_shared_config_reproduces_the_run(example: Example, registered: Register, train: Any, tmp_path: Path) -> None:
    """It holds the keys of the method and no other's."""
    name = registered(example)
    items = classification(48, torch.float32)
    run = train(Net(), items, num_train_epochs=2, **example.arguments)
    run.trainer.save_model(str(tmp_path / "shared"))
    saved = json.loads((tmp_path / "shared" / "sharpness_config.json").read_text())
    assert example.arguments.items() <= saved.items()
    assert not [key for key in saved if key.startswith(("wsam", "xsam")) or key == "sam_rho"]
    again = train(Net(), items, num_train_epochs=2, sharpness_config=str(tmp_path / "shared"))
    assert again.trainer.args.optim == name
    assert torch.equal(run.weights[-1], again.weights[-1])


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4}


def recipe(example: Example, output: Path) -> dict[str, Any]:
    """Eight steps on scikit-learn's digits."""
    training = {
        "output_dir": str(output),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "max_steps": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        **example.arguments,
    }
    data = {"source": "digits", "train_samples": 80, "eval_samples": 20, "test_samples": 40}
    model = {"model_type": "vit", "config": TINY | {"image_size": 8, "num_channels": 1}}
    return {"task": "image-classification", "model": model, "data": data, "training": training}


@by_example
def test_a_recipe(example: Example, registered: Register, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from hf_sharpness.tasks.recipe import load_recipe
    from hf_sharpness.tasks.run import run_recipe

    registered(example)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(example, tmp_path / "out")))
    metrics = run_recipe(load_recipe(file))
    assert 0 <= metrics["test_accuracy"] <= 1
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert sum("ascent_grad_norm" in entry for entry in history) == (3 if example.folder == "looksam" else 8)


@pytest.mark.usually("gsam")
@by_example
def test_an_installed_package_brings_its_flags(
    example: Example, installed: Any, registered: Register, train: Any, tmp_path: Path
) -> None:
    """`hf-sharpness run`, in an environment where the package is found, on a script of transformers' Trainer."""
    arguments = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 6, "learning_rate": 0.05}
    given = example.arguments | arguments | {"output_dir": str(tmp_path / "out"), "save_strategy": "no"}
    flags = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    result = subprocess.run(
        [sys.executable, "-m", "hf_sharpness", "run", str(SCRIPT), *flags],
        env={**environment(), "PYTHONPATH": f"{installed(example)}:{Path(hf_sharpness.__file__).parents[1]}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "sharpness_config.json").exists()

    registered(example)
    sys.path.append(str(SCRIPT.parent))
    from tiny import Line

    items = [{"x": torch.full((2,), n / 16), "labels": torch.tensor(n / 8)} for n in range(16)]
    args = hf_sharpness.TrainingArguments(str(tmp_path / "here"), save_strategy="no", **example.arguments | arguments)
    trainer = hf_sharpness.Trainer(Line(), args, train_dataset=items)
    trainer.train()
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(
        flat(trainer.model), torch.cat([saved[n].flatten() for n, _ in trainer.model.named_parameters()])
    )


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
