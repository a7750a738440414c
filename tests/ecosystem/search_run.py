"""A script that searches over sam_rho and wsam_gamma: `search_run.py ray FOLDER`, `search_run.py optuna FOLDER`.

Writes every trial's values and objective, what a plain run with those values gives, and the best.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from hf_sharpness import Trainer, TrainingArguments

GRID = {"sam_rho": [0.05, 0.4], "wsam_gamma": [0.2, 0.7]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows():
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(4, generator=generator), "labels": i % 2} for i in range(32)]


def trainer(folder, **values):
    args = TrainingArguments(
        str(folder / "runs"),
        optim="wsam",
        learning_rate=0.1,
        max_steps=3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **values,
    )
    return Trainer(model_init=Net, args=args, train_dataset=rows(), eval_dataset=rows())


def with_ray(folder):
    import ray
    from ray import tune

    ray.init(num_cpus=1, include_dashboard=False)
    space = {name: tune.grid_search(values) for name, values in GRID.items()}
    best = trainer(folder).hyperparameter_search(
        lambda _: space, backend="ray", n_trials=1, direction="minimize", storage_path=str(folder / "ray")
    )
    return best, [(trial.config, trial.last_result["objective"]) for trial in best.run_summary.trials]


def with_optuna(folder):
    """Several processes share the study by a journal in the folder."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    study = {"storage": optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal"))), "study_name": "s"}
    best = trainer(folder).hyperparameter_search(
        lambda trial: {name: trial.suggest_float(name, *values) for name, values in GRID.items()},
        backend="optuna",
        n_trials=3,
        direction="minimize",
        load_if_exists=True,
        **study,
    )
    return best, [(trial.params, trial.value) for trial in optuna.load_study(**study).trials]


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    best, trials = {"ray": with_ray, "optuna": with_optuna}[sys.argv[1]](folder)
    plain = []
    for values, _ in trials:
        run = trainer(folder, **values)
        run.train()
        plain.append(run.evaluate()["eval_loss"])
    result = {"trials": trials, "plain": plain, "best": [best.hyperparameters, best.objective]}
    Path(sys.argv[3]).write_text(json.dumps(result))
