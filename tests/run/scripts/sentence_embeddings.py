"""Train sentence embeddings with sentence-transformers, with a loss that has weights and a count of its own."""

import json
from dataclasses import dataclass, field

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import SoftmaxLoss
from transformers import HfArgumentParser, Trainer, set_seed


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Path to a pretrained model."})
    train_file: str = field(metadata={"help": "A json file with the training data."})


class CountingLoss(SoftmaxLoss):
    def forward(self, *args, **kwargs):
        return {"softmax": super().forward(*args, **kwargs)}


if __name__ == "__main__":
    parser = HfArgumentParser((Arguments, SentenceTransformerTrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    with open(script_args.train_file) as file:
        rows = [json.loads(line) for line in file]
    data = Dataset.from_list(
        [{"one": row["text"], "two": row["summary"], "label": number % 2} for number, row in enumerate(rows)]
    )
    model = SentenceTransformer(script_args.model, device="cpu")
    loss = CountingLoss(model, sentence_embedding_dimension=16, num_labels=2)
    trainer = SentenceTransformerTrainer(model=model, args=training_args, train_dataset=data, loss=loss)
    assert isinstance(trainer, Trainer)
    trainer.train()
    model.save_pretrained(training_args.output_dir)
    trainer.save_state()
