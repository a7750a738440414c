"""A script that trains with TRL's GRPO and RLOO, and notes what they generate and what every pass computes from.

`generating_run.py FOLDER mixed-in grpo SHAPE...` mixes the classes in; `patched` is for `hf-sharpness run`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from models.text import WORDS, language_model, tokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

CASES = {
    "stock": {"optim": "adamw_torch"},
    "sam-0": {"optim": "sam", "sam_rho": 0.0, "base_optim": "adamw_torch"},
    "sam": {"optim": "sam", "sam_rho": 0.5},
    "sam-micro-batch": {"optim": "sam", "sam_rho": 0.5, "sam_scope": "micro_batch"},
    "wsam": {"optim": "wsam", "sam_rho": 0.5, "wsam_mode": "decoupled"},
    "xsam": {"optim": "xsam", "sam_rho": 0.5, "xsam_alpha_points": 3, "xsam_refresh": 1},
}
SHAPES = {
    "one": {"gradient_accumulation_steps": 1, "steps_per_generation": 1},
    "accumulated": {"gradient_accumulation_steps": 2, "steps_per_generation": 2},
    "reused": {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
}


class Notes(list):
    """Of a type that no replay undoes."""


class Observed:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generated, self.passes = Notes(), Notes()

    def _generate_and_score_completions(self, inputs):
        self.generated.append(total(self.model))
        return super()._generate_and_score_completions(inputs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        ids, advantages = inputs["completion_ids"], inputs["advantages"]
        self.passes.append((self._step, ids.tolist(), advantages.tolist(), total(model), loss.item()))
        return loss


def total(model):
    return float(sum(p.detach().double().abs().sum() for p in model.parameters()))


def reward(completions, **kwargs):
    return [float(text.count("good") - text.count("bad")) + 0.1 * len(text.split()) for text in completions]


def classes(kind, mixed_in):
    trainer, config = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[kind]
    if mixed_in:
        from hf_sharpness import SharpnessArguments, SharpnessTrainerMixin

        config = dataclass(type("Config", (SharpnessArguments, config), {}))
        return type("Mixed", (Observed, SharpnessTrainerMixin, trainer), {}), config
    return type("Patched", (Observed, trainer), {}), config


def trained(folder, kind, mixed_in, **arguments):
    trainer_class, config = classes(kind, mixed_in)
    args = config(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        learning_rate=1e-2,
        max_steps=4,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        beta=0.0,
        **arguments,
    )
    prompts = [{"prompt": " ".join(WORDS[i % 5 : i % 5 + 3])} for i in range(24)]
    trainer = trainer_class(
        model=language_model(dropout=0.2),
        args=args,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer(),
    )
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist()
    history = trainer.state.log_history
    return {"generated": trainer.generated, "passes": trainer.passes, "weights": weights, "history": history}


if __name__ == "__main__":
    folder, layout, kind, *shapes = sys.argv[1:]
    for shape in shapes:
        for case, method in CASES.items():
            result = trained(Path(folder, "run"), kind, layout == "mixed-in", **SHAPES[shape], **method)
            Path(folder, f"{shape}-{case}.json").write_text(json.dumps(result))
