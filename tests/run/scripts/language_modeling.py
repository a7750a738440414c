"""Train a causal or a masked language model: texts grouped into blocks, own loss with a log and a count of its own."""

from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import transformers.trainer
import transformers.training_args as training_args_module
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    default_data_collator,
    set_seed,
)


@dataclass
class MyTrainingArguments(training_args_module.TrainingArguments):
    """Changed defaults, a field of its own."""

    learning_rate: float = field(default=1e-2, metadata={"help": "The initial learning rate."})
    z_loss: float = field(default=1e-4, metadata={"help": "Weight of the squared log-normalizer in the loss."})

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError("z_loss must not be negative")
        super().__post_init__()


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    train_file: str = field(metadata={"help": "A text file with the training data."})
    objective: Literal["clm", "mlm"] = field(default="clm", metadata={"help": "Which model."})
    block_size: int = field(default=16, metadata={"help": "Texts are joined and cut into blocks of this length."})
    tag: list[str] = field(default_factory=lambda: ["a", "b"], metadata={"help": "A list."})


class ZLossTrainer(transformers.trainer.Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses_computed = 0
        self.collected = {"z": []}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        z = outputs.logits.logsumexp(-1).square().mean()
        self.losses_computed += 1
        self.collected["z"].append(z.item())
        self.log({"z": z.item(), "computed": self.losses_computed})
        loss = loss + self.args.z_loss * z / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


def main():
    parser = HfArgumentParser((Arguments, MyTrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw = load_dataset("text", data_files={"train": script_args.train_file})
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    clm = script_args.objective == "clm"
    model_class = AutoModelForCausalLM if clm else AutoModelForMaskedLM
    model = model_class.from_pretrained(script_args.model_name_or_path)
    tokenized = raw.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])

    def group_texts(examples):
        joined = {key: list(chain(*examples[key])) for key in ("input_ids", "attention_mask")}
        size = script_args.block_size
        total = len(joined["input_ids"]) // size * size
        blocks = {key: [values[i : i + size] for i in range(0, total, size)] for key, values in joined.items()}
        if clm:
            blocks["labels"] = [list(block) for block in blocks["input_ids"]]
        return blocks

    data = tokenized.map(group_texts, batched=True, remove_columns=tokenized["train"].column_names)
    trainer = ZLossTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        processing_class=tokenizer,
        data_collator=default_data_collator if clm else DataCollatorForLanguageModeling(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    print("computed", trainer.losses_computed, "collected", len(trainer.collected["z"]))


if __name__ == "__main__":
    main()
