"""Real runs, kept tiny: what a run may look at, what moves with its seed, and whole studies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sharpness.compare import cli
from hf_sharpness.compare.errors import CompareError
from hf_sharpness.compare.packing import unpack
from hf_sharpness.compare.recipe_runs import RecipeSubject
from hf_sharpness.tasks.recipe import load_recipe, override
from hf_sharpness.tasks.sources import Examples

pytest.importorskip("rliable")
pytest.importorskip("torchmetrics")
pytest.importorskip("sklearn")
RECIPE = Path(__file__).parents[2] / "recipes" / "digits-vit.yaml"
TINY = {
    "data.train_samples": "64",
    "data.eval_samples": "30",
    "data.test_samples": "40",
    "data.label_noise": "0.4",
    "model.config.hidden_size": "16",
    "model.config.num_hidden_layers": "1",
    "model.config.num_attention_heads": "2",
    "model.config.intermediate_size": "16",
    "model.config.patch_size": "4",
}
FLAGS = [word for name, value in TINY.items() for word in (f"--{name}", value)]
SAM = {"optim": "sam", "base_optim": "adamw_torch", "sam_rho": 0.05, "learning_rate": 1e-3, "max_steps": 3}
PLAIN = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 4}


def subject(**changes: str) -> RecipeSubject:
    recipe = load_recipe(RECIPE)
    for name, value in {**TINY, **changes}.items():
        override(recipe, name, value)
    return RecipeSubject(recipe)


def test_a_tuning_run_never_touches_a_test_example(monkeypatch):
    runs = subject()
    rows = set(runs.prepared({"output_dir": "unused"}, 5, final=True).data.test.rows.tolist())
    seen: set[int] = set()
    own = Examples.__getitem__

    def watched(self, index):
        seen.add(int(self.rows[index]))
        return own(self, index)

    monkeypatch.setattr(Examples, "__getitem__", watched)
    record = runs.run(SAM, 5, final=False, averages=("swa",))
    assert seen
    assert not seen & rows
    assert {"test", "predictions", "measures"}.isdisjoint(record)
    runs.run(SAM, 5, final=True)
    assert rows <= seen


def test_what_a_seed_moves():
    def looked(seed: int, arguments: dict) -> tuple:
        run = subject().prepared({**arguments, "output_dir": "unused"}, seed, final=True)
        weights = torch.cat([parameter.flatten() for parameter in run.task.model.parameters()])
        order = [batch["labels"].tolist() for batch in run.trainer.get_train_dataloader()]
        data = run.data
        return weights.tolist(), order, data.train.labels.tolist(), data.eval.rows.tolist(), data.test.rows.tolist()

    one, other, paired = looked(1, PLAIN), looked(2, PLAIN), looked(1, SAM)
    assert one == paired  # another arm with the same seed: weights, order, noise, splits
    assert one[4] == other[4]  # the test split stays
    assert all(a != b for a, b in zip(one[:4], other[:4], strict=True))


def test_the_record_of_a_run():
    record = subject().run(SAM, 3, final=True)
    assert (record["steps"], record["passes"], record["diverged"]) == (3, 2.0, False)
    predictions, labels = unpack(record["predictions"]), unpack(record["labels"])
    assert record["test"]["accuracy"] == pytest.approx(np.mean(predictions == labels), abs=1e-6)
    assert record["measures"]["nll"] == pytest.approx(record["test"]["loss"], rel=1e-3)
    assert set(record["measures"]) == {
        "nll", "calibration_error", "at_8_bits", "at_4_bits", "under_noise", "train_loss", "generalization_gap",
        "sharpness", "adaptive_sharpness", "gradient_norm", "weight_norm",
    }  # fmt: skip
    gap = record["measures"]["nll"] - record["measures"]["train_loss"]
    assert record["measures"]["generalization_gap"] == pytest.approx(gap, abs=1e-6)
    assert record["measures"]["sharpness"] > 0
    json.dumps(record, allow_nan=False)


def test_runs_repeat_and_averaging_changes_nothing():
    alone, watched = subject().run(PLAIN, 3, final=False), subject().run(PLAIN, 3, final=False, averages=("swa", "ema"))
    assert alone["curve"] == watched["curve"]
    assert alone["eval"] == watched["eval"]
    assert set(watched["averaged"]) == {"swa", "ema"}


def test_a_run_that_diverges_is_a_result():
    record = subject().run({**PLAIN, "optim": "sgd", "learning_rate": 1e15, "max_grad_norm": 0.0}, 3, final=True)
    assert record["diverged"]
    json.dumps(record, allow_nan=False)


def test_a_second_data_set():
    record = subject(**{"data.second_test": "{test_fraction: 0.5, test_samples: 100}"}).run(PLAIN, 3, final=True)
    assert 0 <= record["measures"]["on_second_test"] <= 1


SMALL_STUDY = ["--arms", "base,sam", "--sam_rho", ".05", "--trials", "1", "--tuning_seeds", "1", "--seeds", "2"]
SHORT = ["--max_steps", "4"]


@pytest.mark.slow
def test_a_study_in_steps_and_its_continuation_elsewhere(tmp_path, capsys):
    command = [str(RECIPE), *FLAGS, *SMALL_STUDY, *SHORT]
    assert cli.main([*command, "--output_dir", str(tmp_path / "a"), "--dry_run"]) == 0
    assert "3 tuning runs and 6 final runs" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()
    for number in range(4):  # three tuning runs and a final one
        assert cli.main([*command, "--output_dir", str(tmp_path / "a"), "--one"]) == 0
        assert f"{8 - number} runs are left" in capsys.readouterr().out
    before = json.loads((tmp_path / "a" / "results.json").read_text())["runs"]
    assert len(before) == 4

    (tmp_path / "b").mkdir()  # another machine: the file alone
    (tmp_path / "b" / "results.json").write_text((tmp_path / "a" / "results.json").read_text())
    assert cli.main([*command, "--output_dir", str(tmp_path / "b")]) == 0
    output = capsys.readouterr().out
    assert "5 runs are left" in output
    after = json.loads((tmp_path / "b" / "results.json").read_text())
    assert len(after["runs"]) == 9
    assert all(run in after["runs"] for run in before)
    assert output.strip().splitlines()[-1].endswith(after["verdicts"][0]["sentence"])
    assert {path.name for path in (tmp_path / "b").iterdir()} >= {"table.md", "table.csv", "compare.png", "best"}

    assert cli.main([*command, "--output_dir", str(tmp_path / "b"), "--seeds", "3"]) == 2
    assert "holds another study (options.seeds was 2 and is 3)" in capsys.readouterr().err
    assert cli.main(["--report", str(tmp_path / "b"), str(tmp_path / "b"), "--output_dir", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "across.md").is_file()


@pytest.mark.slow
def test_two_at_a_time(tmp_path, capsys):
    command = [str(RECIPE), *FLAGS, *SMALL_STUDY, *SHORT, "--output_dir", str(tmp_path), "--jobs", "2"]
    assert cli.main(command) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 9
    assert (tmp_path / "table.md").is_file()


@pytest.mark.slow
def test_an_unmodified_script(tmp_path, capsys):
    script = Path(__file__).with_name("script.py")
    folder = tmp_path / "out"
    command = ["--script", str(script), "--metric", "eval_accuracy", *SMALL_STUDY, "--output_dir", str(folder)]
    assert cli.main([*command, "--", "--hidden", "8"]) == 0
    content = json.loads((folder / "results.json").read_text())
    assert "no separate test" in (folder / "table.md").read_text()
    assert "no separate test" in content["plan"]["facts"]["judged on"]
    assert (content["plan"]["learning_rate"], content["plan"]["length"]["value"]) == (0.01, 8.0)
    finals = [run for run in content["runs"] if run["stage"] == "final"]
    # Eight steps of two passes, and the check of the first one.
    assert {run["passes"] for run in finals if run["arm"] == "sam"} == {2.125}
    assert all(set(run["averaged"]) <= {"swa", "ema"} for run in finals)
    assert {"nll", "at_4_bits"} <= set(finals[0]["measures"])
    assert len({json.dumps(run["eval"]) for run in finals if run["arm"] == "base"}) == 2  # the seed moves something
    assert cli.main([*command[:3], "eval_acuracy", *command[4:-1], str(tmp_path / "x"), "--", "--hidden", "8"]) == 2
    assert "'eval_acuracy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["RECIPE"]),
        (["digits-vit", "--seeds", "1"], ["--seeds 1", "at least 2"]),
        (["digits-vit", "--trials", "-1"], ["--trials -1"]),
        (["digits-vit", "--margin", "-1"], ["--margin -1"]),
        (["digits-vit", "--metric", "acuracy"], ["'acuracy'", "accuracy"]),
        (["digits-vit", "--arms", "base,sma"], ["'sma'", "sam"]),
        (["digits-vit", "--sam_rho"], ["--sam_rho", "missing"]),
        (["digits-vit", "--sam_rho", ".1,-1"], ["sam_rho", "-1"]),
        (["digits-vit", "--budget", "soon"], ["--budget", "'soon'"]),
        (["digits-vit", "--seeds", "x"], ["--seeds", "'x'"]),
        (["digits-vit", "--", "--x"], ["--script"]),
        (["--script", "nowhere.py", "--metric", "x"], ["nowhere.py"]),
        (["--script", __file__], ["--metric"]),
        (["--report", "nowhere"], ["nowhere"]),
        (["nosuch"], ["nosuch"]),
        (["digits-vit", "--storage", "nosuch://x", "--arms", "base,sam"], ["--storage", "nosuch://x"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(CompareError, match="macro_f1"):
        RecipeSubject(load_recipe(RECIPE), "auc")


def test_the_command_is_one_of_hf_sharpness(capsys):
    from hf_sharpness.cli import main

    assert main(["compare", "--help"]) == 0
    assert "--arms" in capsys.readouterr().out
