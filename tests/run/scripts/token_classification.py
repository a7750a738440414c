"""Fine-tune for token classification without a main function, on a model built by `model_init`."""

import torch
import transformers
from datasets import load_dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

parser = transformers.HfArgumentParser(transformers.TrainingArguments)
parser.add_argument("--model_name_or_path", required=True)
parser.add_argument("--train_file", required=True)
training_args, script_args = parser.parse_args_into_dataclasses()

raw = load_dataset("json", data_files=script_args.train_file, split="train")
labels = sorted({tag for tags in raw["ner_tags"] for tag in tags})
tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)


def align(examples):
    tokens = tokenizer(examples["tokens"], is_split_into_words=True, truncation=True, max_length=32)
    tokens["labels"] = [
        [-100 if word is None else labels.index(tags[word]) for word in tokens.word_ids(number)]
        for number, tags in enumerate(examples["ner_tags"])
    ]
    return tokens


class WeightedTrainer(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())
        return (loss, outputs) if return_outputs else loss


trainer = WeightedTrainer(
    model_init=lambda: AutoModelForTokenClassification.from_pretrained(
        script_args.model_name_or_path, num_labels=len(labels)
    ),
    args=training_args,
    train_dataset=raw.map(align, batched=True, remove_columns=raw.column_names),
    data_collator=DataCollatorForTokenClassification(tokenizer),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()
