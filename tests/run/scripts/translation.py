"""Fine-tune for translation: generated texts scored by BLEU, a forced first token, limits on samples."""

import collections
import logging
import math
import os
import sys
from dataclasses import dataclass, field

import numpy as np
import transformers
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    default_data_collator,
    set_seed,
)

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})


@dataclass
class DataArguments:
    source_lang: str = field(metadata={"help": "Key of the source texts."})
    target_lang: str = field(metadata={"help": "Key of the target texts."})
    train_file: str | None = field(default=None, metadata={"help": "Lines of JSON."})
    validation_file: str | None = field(default=None, metadata={"help": "Lines of JSON."})
    test_file: str | None = field(default=None, metadata={"help": "Lines of JSON."})
    max_source_length: int = field(default=32, metadata={"help": "Longer texts are cut off."})
    max_target_length: int = field(default=16, metadata={"help": "Longer texts are cut off."})
    val_max_target_length: int | None = field(default=None, metadata={"help": "Of evaluation and prediction."})
    pad_to_max_length: bool = field(default=False, metadata={"help": "Pad all to the maximum."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Take no more."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Take no more."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Take no more."})
    num_beams: int | None = field(default=1, metadata={"help": "Beams of the search."})
    ignore_pad_token_for_loss: bool = field(default=True, metadata={"help": "Padding does not count in the loss."})
    source_prefix: str | None = field(default=None, metadata={"help": "Put before every source text."})
    forced_bos_token: str | None = field(default=None, metadata={"help": "The first token of every generated text."})

    def __post_init__(self):
        if self.val_max_target_length is None:
            self.val_max_target_length = self.max_target_length


def bleu(predictions, references, order=2):
    counts, found = [0] * order, [0] * order
    for prediction, reference in zip(predictions, references, strict=True):
        for n in range(order):
            ours, theirs = (
                collections.Counter(tuple(words[i : i + n + 1]) for i in range(len(words) - n))
                for words in (prediction.split(), reference.split())
            )
            counts[n] += ours.total()
            found[n] += (ours & theirs).total()
    precision = math.exp(sum(math.log((f + 1) / (c + 1)) for f, c in zip(found, counts, strict=True)) / order)
    lengths = [sum(len(text.split()) for text in texts) for texts in (references, predictions)]
    return 100 * precision * math.exp(min(0, 1 - lengths[0] / max(lengths[1], 1)))


def main():
    parser = HfArgumentParser((ModelArguments, DataArguments, Seq2SeqTrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()

    if training_args.should_log:
        transformers.utils.logging.set_verbosity_info()
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    logger.warning(f"distributed training: {training_args.parallel_mode.value == 'distributed'}")
    set_seed(training_args.seed)

    files = {"train": data_args.train_file, "validation": data_args.validation_file, "test": data_args.test_file}
    raw = load_dataset("json", data_files={split: file for split, file in files.items() if file is not None})
    config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_args.model_name_or_path, config=config)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    if model.config.decoder_start_token_id is None:
        raise ValueError("`config.decoder_start_token_id` is missing")
    if data_args.forced_bos_token is not None:
        forced = tokenizer.convert_tokens_to_ids(data_args.forced_bos_token)
        model.generation_config.forced_bos_token_id = forced

    prefix = data_args.source_prefix or ""
    padding = "max_length" if data_args.pad_to_max_length else False
    target_length = data_args.max_target_length

    def preprocess(examples):
        sources = [prefix + pair[data_args.source_lang] for pair in examples["translation"]]
        targets = [pair[data_args.target_lang] for pair in examples["translation"]]
        inputs = tokenizer(sources, max_length=data_args.max_source_length, padding=padding, truncation=True)
        labels = tokenizer(text_target=targets, max_length=target_length, padding=padding, truncation=True)
        if padding and data_args.ignore_pad_token_for_loss:
            pad = tokenizer.pad_token_id
            labels["input_ids"] = [[-100 if token == pad else token for token in row] for row in labels["input_ids"]]
        inputs["labels"] = labels["input_ids"]
        return inputs

    def prepare(split, limit):
        rows = raw[split]
        if limit is not None:
            rows = rows.select(range(min(len(rows), limit)))
        with training_args.main_process_first(desc=f"{split} dataset map pre-processing"):
            return rows.map(preprocess, batched=True, remove_columns=rows.column_names)

    train_dataset = prepare("train", data_args.max_train_samples) if training_args.do_train else None
    target_length = data_args.val_max_target_length
    eval_dataset = prepare("validation", data_args.max_eval_samples) if training_args.do_eval else None
    predict_dataset = prepare("test", data_args.max_predict_samples) if training_args.do_predict else None

    if data_args.pad_to_max_length:
        data_collator = default_data_collator
    else:
        pad = -100 if data_args.ignore_pad_token_for_loss else tokenizer.pad_token_id
        data_collator = DataCollatorForSeq2Seq(
            tokenizer, model=model, label_pad_token_id=pad, pad_to_multiple_of=8 if training_args.fp16 else None
        )

    def decode(tokens):
        tokens = np.where(tokens != -100, tokens, tokenizer.pad_token_id)
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def compute_metrics(eval_preds):
        predictions, labels = eval_preds
        if isinstance(predictions, tuple):
            predictions = predictions[0]
        lengths = [np.count_nonzero(row != tokenizer.pad_token_id) for row in predictions]
        scores = {"bleu": bleu(decode(predictions), decode(labels)), "gen_len": np.mean(lengths)}
        return {name: round(float(value), 4) for name, value in scores.items()}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        data_collator=data_collator,
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
    )
    if training_args.do_train:
        checkpoint = None
        if training_args.resume_from_checkpoint is not None:
            checkpoint = training_args.resume_from_checkpoint
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        metrics = train_result.metrics
        metrics["train_samples"] = len(train_dataset)
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()

    max_length = training_args.generation_max_length
    if max_length is None:
        max_length = data_args.val_max_target_length
    num_beams = data_args.num_beams if data_args.num_beams is not None else training_args.generation_num_beams
    if training_args.do_eval:
        metrics = trainer.evaluate(max_length=max_length, num_beams=num_beams, metric_key_prefix="eval")
        metrics["eval_samples"] = len(eval_dataset)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_predict:
        results = trainer.predict(
            predict_dataset, metric_key_prefix="predict", max_length=max_length, num_beams=num_beams
        )
        trainer.log_metrics("predict", results.metrics)
        trainer.save_metrics("predict", results.metrics)
        if trainer.is_world_process_zero() and training_args.predict_with_generate:
            with open(os.path.join(training_args.output_dir, "generated_predictions.txt"), "w") as writer:
                writer.write("\n".join(decode(results.predictions)))

    kwargs = {"finetuned_from": model_args.model_name_or_path, "tasks": "translation"}
    kwargs["language"] = [data_args.source_lang, data_args.target_lang]
    if training_args.push_to_hub:
        trainer.push_to_hub(**kwargs)
    else:
        trainer.create_model_card(**kwargs)


if __name__ == "__main__":
    main()
