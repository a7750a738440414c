"""Supervised fine-tuning and preference optimization with TRL, whose configs and trainers derive from transformers'."""

import sys
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, TrlParser


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Path to a pretrained model."})
    train_file: str = field(metadata={"help": "A json file with the training data."})


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    config_class, trainer_class = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer)}[kind]
    script_args, training_args = TrlParser((Arguments, config_class)).parse_args_and_config()
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(script_args.model),
        args=training_args,
        train_dataset=load_dataset("json", data_files=script_args.train_file, split="train"),
        processing_class=AutoTokenizer.from_pretrained(script_args.model),
    )
    assert isinstance(trainer, Trainer)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
