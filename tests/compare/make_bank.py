"""Make `bank.npz`: real runs of a base optimizer at several rates, lengths and seeds, from which studies are resampled.

    python tests/compare/make_bank.py

Written with torch 2.13 on one thread: a small ViT, AdamW, 500 digits of which 40 % have wrong labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_sharpness.compare.arms import Arm
from hf_sharpness.compare.packing import unpack
from hf_sharpness.compare.points import sobol_points
from hf_sharpness.compare.recipe_runs import RecipeSubject
from hf_sharpness.tasks.recipe import load_recipe, override

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-vit.yaml"
CHANGES = {
    "data.train_samples": "500",
    "data.label_noise": "0.4",
    "model.config.hidden_size": "32",
    "model.config.num_hidden_layers": "1",
    "model.config.intermediate_size": "64",
    "model.config.patch_size": "4",
}
EPOCHS, POINTS, SEEDS = 16.0, 6, 24


def main() -> None:
    """Make the runs and write the file beside this one."""
    recipe = load_recipe(RECIPE)
    for name, value in CHANGES.items():
        override(recipe, name, value)
    subject = RecipeSubject(recipe, "accuracy")
    arm = Arm("base", "base", {"optim": "adamw_torch"})
    shape = (POINTS, SEEDS)
    scores = {name: np.zeros(shape) for name in ("plain", "averaged")}
    predictions = {name: np.zeros((*shape, 359), dtype=np.uint8) for name in ("plain", "averaged")}
    labels = np.zeros(359, dtype=np.uint8)
    for number, point in enumerate(sobol_points(POINTS, [arm])):
        for seed in range(SEEDS):
            arguments = {
                "optim": "adamw_torch",
                "learning_rate": point.learning_rate(2e-3),
                "num_train_epochs": EPOCHS * point.share(),
            }
            record = subject.run(arguments, seed, final=True, averages=("swa",))
            for name, look in (("plain", record), ("averaged", record["averaged"]["swa"])):
                scores[name][number, seed] = look["eval"]["accuracy"]
                predictions[name][number, seed] = unpack(look["predictions"])
            labels[:] = unpack(record["labels"])
            print(number, seed, scores["plain"][number, seed], scores["averaged"][number, seed], flush=True)
    np.savez_compressed(
        Path(__file__).with_name("bank.npz"),
        labels=labels,
        **{f"{name}_scores": values for name, values in scores.items()},
        **{f"{name}_predictions": values for name, values in predictions.items()},
    )


if __name__ == "__main__":
    main()
