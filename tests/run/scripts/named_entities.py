"""Fine-tune for named entities: labels aligned with sub-words, entity scores, evaluation in training, predictions."""

import os
import sys
from dataclasses import dataclass, field

import datasets
import numpy as np
import transformers
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    PreTrainedConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Load a head of another size."})


@dataclass
class DataArguments:
    train_file: str = field(metadata={"help": "A json file with the training data."})
    validation_file: str = field(metadata={"help": "A json file with the validation data."})
    test_file: str | None = field(default=None, metadata={"help": "A json file with the test data."})
    task_name: str | None = field(default="ner", metadata={"help": "The tags are in the column `<task>_tags`."})
    max_seq_length: int = field(default=None, metadata={"help": "Longer sequences are cut off."})
    label_all_tokens: bool = field(default=False, metadata={"help": "Label every token of a word."})


def entities(tags):
    """Runs of the same tag."""
    found, start = set(), 0
    for end in range(1, len(tags) + 1):
        if end == len(tags) or tags[end] != tags[start]:
            if tags[start] != "O":
                found.add((tags[start], start, end))
            start = end
    return found


def main():
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    log_level = training_args.get_process_log_level()
    datasets.utils.logging.set_verbosity(log_level)
    transformers.utils.logging.set_verbosity(log_level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
    set_seed(training_args.seed)

    files = {"train": data_args.train_file, "validation": data_args.validation_file}
    if data_args.test_file is not None:
        files["test"] = data_args.test_file
    raw = load_dataset("json", data_files=files)
    column = f"{data_args.task_name}_tags"
    labels = sorted({tag for tags in raw["train"][column] for tag in tags})
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path, num_labels=len(labels), finetuning_task=data_args.task_name
    )
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, use_fast=True)
    model = AutoModelForTokenClassification.from_pretrained(
        model_args.model_name_or_path, config=config, ignore_mismatched_sizes=model_args.ignore_mismatched_sizes
    )
    assert model.config.label2id == PreTrainedConfig(num_labels=len(labels)).label2id
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.config.id2label = dict(enumerate(labels))

    def align(examples):
        tokens = tokenizer(
            examples["tokens"], truncation=True, max_length=data_args.max_seq_length, is_split_into_words=True
        )
        tokens["labels"] = []
        for number, tags in enumerate(examples[column]):
            words = tokens.word_ids(batch_index=number)
            tokens["labels"].append(
                [
                    -100
                    if word is None or (word == before and not data_args.label_all_tokens)
                    else model.config.label2id[tags[word]]
                    for before, word in zip([None, *words], words, strict=False)
                ]
            )
        return tokens

    with training_args.main_process_first(desc="dataset map pre-processing"):
        data = raw.map(align, batched=True)

    def tags_of(predictions, targets):
        if training_args.eval_do_concat_batches:
            predictions, targets = [predictions], [targets]
        given, wanted = [], []
        for scores, numbers in zip(predictions, targets, strict=True):
            for chosen, right in zip(np.argmax(scores, axis=2), numbers, strict=True):
                given.append([labels[number] for number in chosen[right != -100]])
                wanted.append([labels[number] for number in right[right != -100]])
        return given, wanted

    def compute_metrics(p):
        given, wanted = tags_of(*p)
        pairs = [(entities(a), entities(b)) for a, b in zip(given, wanted, strict=True)]
        right = sum(len(a & b) for a, b in pairs)
        return {
            "precision": right / max(sum(len(a) for a, _ in pairs), 1),
            "recall": right / max(sum(len(b) for _, b in pairs), 1),
        }

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=compute_metrics,
    )
    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        metrics = train_result.metrics
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.do_predict:
        predictions, targets, metrics = trainer.predict(data["test"], metric_key_prefix="predict")
        trainer.log_metrics("predict", metrics)
        trainer.save_metrics("predict", metrics)
        if trainer.is_world_process_zero():
            with open(os.path.join(training_args.output_dir, "predictions.txt"), "w") as writer:
                writer.writelines(" ".join(row) + "\n" for row in tags_of(predictions, targets)[0])

    kwargs = {"finetuned_from": model_args.model_name_or_path, "tasks": "token-classification"}
    if training_args.push_to_hub:
        trainer.push_to_hub(**kwargs)
    else:
        trainer.create_model_card(**kwargs)


if __name__ == "__main__":
    main()
