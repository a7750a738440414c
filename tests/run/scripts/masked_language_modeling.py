"""Train a masked language model: from a checkpoint or from scratch, line by line, streamed, with its perplexity."""

import math
import os
import sys
from dataclasses import dataclass, field
from itertools import chain

import torch
from datasets import load_dataset
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    is_torch_xla_available,
    set_seed,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging as transformers_logging

MODEL_TYPES = tuple(config.model_type for config in MODEL_FOR_MASKED_LM_MAPPING)


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Path to a pretrained model."})
    model_type: str | None = field(default=None, metadata={"help": "From scratch: one of " + ", ".join(MODEL_TYPES)})
    config_overrides: str | None = field(default=None, metadata={"help": "From scratch: name=value,name=value."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Path to a tokenizer."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "Type of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )

    def __post_init__(self):
        if self.config_overrides is not None and self.model_name_or_path is not None:
            raise ValueError("--config_overrides goes with a model from scratch")


@dataclass
class DataArguments:
    train_file: str = field(metadata={"help": "A text file."})
    validation_file: str | None = field(default=None, metadata={"help": "A text file."})
    validation_split_percentage: int | None = field(default=25, metadata={"help": "Without a validation file."})
    max_seq_length: int | None = field(default=16, metadata={"help": "Longer sequences are cut."})
    mlm_probability: float = field(default=0.3, metadata={"help": "Ratio of masked tokens."})
    line_by_line: bool = field(default=False, metadata={"help": "Every line is a sequence."})
    streaming: bool = field(default=False, metadata={"help": "Stream the data."})


def main():
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    files = {"train": data_args.train_file}
    if data_args.validation_file is not None:
        files["validation"] = data_args.validation_file
    raw = load_dataset("text", data_files=files, streaming=data_args.streaming)
    if "validation" not in raw:
        percent = data_args.validation_split_percentage
        for split, part in (("validation", f"train[:{percent}%]"), ("train", f"train[{percent}%:]")):
            raw[split] = load_dataset("text", data_files=files, split=part)

    if model_args.model_name_or_path:
        config = AutoConfig.from_pretrained(model_args.model_name_or_path)
        dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
        model = AutoModelForMaskedLM.from_pretrained(model_args.model_name_or_path, config=config, dtype=dtype)
    else:
        config = CONFIG_MAPPING[model_args.model_type]()
        config.update_from_string(model_args.config_overrides)
        model = AutoModelForMaskedLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(model_args.tokenizer_name or model_args.model_name_or_path)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))

    length = min(data_args.max_seq_length, tokenizer.model_max_length)
    tok_logger = transformers_logging.get_logger("transformers.tokenization_utils_base")

    def tokenize(examples):
        cut = {"truncation": True, "max_length": length} if data_args.line_by_line else {}
        with CaptureLogger(tok_logger):
            return tokenizer(examples["text"], return_special_tokens_mask=True, **cut)

    def group(examples):
        joined = {key: list(chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // length * length
        return {key: [values[i : i + length] for i in range(0, total, length)] for key, values in joined.items()}

    with training_args.main_process_first(desc="dataset map tokenization"):
        data = raw.map(tokenize, batched=True, remove_columns=["text"])
        if not data_args.line_by_line:
            data = data.map(group, batched=True)

    def preprocess_logits_for_metrics(logits, labels):
        if isinstance(logits, tuple):
            logits = logits[0]
        return logits.argmax(dim=-1)

    def compute_metrics(eval_preds):
        predictions, labels = (values.reshape(-1) for values in eval_preds)
        masked = labels != -100
        return {"accuracy": float((predictions[masked] == labels[masked]).mean())}

    with_metrics = training_args.do_eval and not is_torch_xla_available()
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"] if training_args.do_train else None,
        eval_dataset=data["validation"] if training_args.do_eval else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(
            tokenizer=tokenizer,
            mlm_probability=data_args.mlm_probability,
            pad_to_multiple_of=8 if training_args.fp16 and data_args.line_by_line else None,
        ),
        compute_metrics=compute_metrics if with_metrics else None,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics if with_metrics else None,
    )
    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", train_result.metrics)
        trainer.save_metrics("train", train_result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        try:
            metrics["perplexity"] = math.exp(metrics["eval_loss"])
        except OverflowError:
            metrics["perplexity"] = float("inf")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.create_model_card(finetuned_from=model_args.model_name_or_path, tasks="fill-mask")


if __name__ == "__main__":
    main()
