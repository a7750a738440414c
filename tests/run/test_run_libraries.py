"""Libraries whose trainers derive from transformers', where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMON, SCRIPTS, Finished, flags

pytestmark = pytest.mark.slow
Process = Callable[..., Finished]


def needs(*packages: str) -> Any:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def three(process: Process, script: str, *arguments: str, **given: Any) -> tuple[Finished, Finished, Finished]:
    """The script as it is, with a stock optimizer, and with wsam."""
    runs = []
    for output, command, optim in (
        ("plain", (), {}),
        ("stock", ("-m", "hf_sharpness.run"), {}),
        ("wsam", ("-m", "hf_sharpness.run"), {"optim": "wsam", "sam_rho": 0.1}),
    ):
        options = flags({**COMMON, **given, **optim, "output_dir": output})
        done = process(*command, SCRIPTS / script, *arguments, *options, output=output)
        assert done.status == 0, done.log
        runs.append(done)
    return tuple(runs)


def assert_as_promised(plain: Finished, stock: Finished, wsam: Finished, same: set[str]) -> None:
    """Stock is plain; wsam's first log has the values that the plain one has, at every step the same counts."""
    assert stock.weights == plain.weights != wsam.weights
    assert stock.history == plain.history
    ours, theirs = ([e for e in run.history if "loss" in e] for run in (wsam, plain))
    assert len(ours) == len(theirs) == 3
    assert {k: v for k, v in ours[0].items() if k in theirs[0] and k != "grad_norm"} == {
        k: v for k, v in theirs[0].items() if k != "grad_norm"
    }
    for mine, other in zip(ours, theirs, strict=True):
        assert {k: mine[k] for k in same} == {k: other[k] for k in same}
        assert mine["perturbed_loss"] > mine["loss"]


@needs("trl")
@pytest.mark.parametrize(("kind", "data"), [("sft", "train-chats.json"), ("dpo", "train-preferences.json")])
def test_trl(kind: str, data: str, process: Process, assets: Path) -> None:
    """SFT and DPO: metrics are those of the clean passes, tokens count once."""
    model = assets / "models" / "llama"
    runs = three(process, "trl_trainers.py", kind, model=model, train_file=assets / "data" / data, bf16=False)
    assert_as_promised(*runs, same={"num_tokens", "epoch", "learning_rate"})


@needs("trl", "peft")
def test_trl_lora(process: Process, assets: Path) -> None:
    done = process(
        *("-m", "hf_sharpness.run", "-m", "trl.scripts.sft"),
        *("--model_name_or_path", assets / "models" / "llama", "--dataset_name", assets / "chats"),
        *("--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"),
        *flags({**COMMON, "bf16": False, "optim": "wsam", "output_dir": "out"}),
    )
    assert done.status == 0, done.log
    assert "'sharpness'" in done.log


@needs("sentence_transformers")
def test_sentence_transformers(process: Process, assets: Path) -> None:
    """A loss with weights of its own, whose parts the trainer tallies in tensors."""
    model, data = assets / "models" / "bert", assets / "data" / "train-summaries.json"
    runs = three(process, "sentence_embeddings.py", model=model, train_file=data)
    assert_as_promised(*runs, same={"epoch", "learning_rate"})


@needs("setfit")
def test_setfit(process: Process, assets: Path) -> None:
    """SetFit's own arguments have no `optim`: its inner trainer's have."""
    done = process("-m", "hf_sharpness.run", SCRIPTS / "few_shot.py", assets / "models" / "bert", "wsam")
    assert done.status == 0, done.log
    assert "'sharpness'" in done.log
