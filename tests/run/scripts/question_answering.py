"""Fine-tune for question answering: a Trainer subclass from a sibling module, evaluation with post-processing."""

import os
import sys
import warnings
from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from trainer_qa import QuestionAnsweringTrainer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from utils_qa import best_spans


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    train_file: str = field(metadata={"help": "A json file with the training data."})
    validation_file: str = field(metadata={"help": "A json file with the validation data."})
    test_file: str | None = field(default=None, metadata={"help": "A json file with the test data."})
    max_seq_length: int = field(default=16, metadata={"help": "Longer contexts are cut into several."})
    doc_stride: int = field(default=4, metadata={"help": "How much of a context its parts have in common."})
    n_best_size: int = field(default=5, metadata={"help": "Candidates that are written down."})
    pad_to_max_length: bool = field(default=True, metadata={"help": "Pad everything to `max_seq_length`."})


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        script_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        script_args, training_args = parser.parse_args_into_dataclasses()
    if training_args.load_best_model_at_end and training_args.metric_for_best_model != "exact_match":
        warnings.warn("--metric_for_best_model should be exact_match")
    set_seed(training_args.seed)

    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    if script_args.test_file is not None:
        files["test"] = script_args.test_file
    raw = load_dataset("json", data_files=files, field="data")
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForQuestionAnswering.from_pretrained(script_args.model_name_or_path)
    columns = raw["train"].column_names

    def tokenize(examples):
        return tokenizer(
            examples["question"],
            examples["context"],
            truncation="only_second",
            max_length=script_args.max_seq_length,
            stride=script_args.doc_stride,
            padding="max_length" if script_args.pad_to_max_length else False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def prepare_train(examples):
        features = tokenize(examples)
        samples, offsets = features.pop("overflow_to_sample_mapping"), features.pop("offset_mapping")
        features["start_positions"], features["end_positions"] = [], []
        for number, (sample, spans) in enumerate(zip(samples, offsets, strict=True)):
            answers = examples["answers"][sample]
            start = answers["answer_start"][0]
            end = start + len(answers["text"][0])
            tokens = [
                token
                for token, (span, part) in enumerate(zip(spans, features.sequence_ids(number), strict=True))
                if part == 1 and span[0] >= start and span[1] <= end
            ]
            features["start_positions"].append(tokens[0] if tokens else 0)
            features["end_positions"].append(tokens[-1] if tokens else 0)
        return features

    def prepare_validation(examples):
        features = tokenize(examples)
        features["example_id"] = [examples["id"][n] for n in features.pop("overflow_to_sample_mapping")]
        for number, spans in enumerate(features["offset_mapping"]):
            parts = features.sequence_ids(number)
            features["offset_mapping"][number] = [
                span if part == 1 else None for span, part in zip(spans, parts, strict=True)
            ]
        return features

    train_dataset = raw["train"].map(prepare_train, batched=True, remove_columns=columns)
    eval_dataset = raw["validation"].map(prepare_validation, batched=True, remove_columns=columns)
    assert len(eval_dataset) > len(raw["validation"])

    def post_process(examples, features, predictions, stage="eval"):
        texts = best_spans(
            examples, features, predictions, script_args.n_best_size, training_args.output_dir, prefix=stage
        )
        formatted = [{"id": key, "prediction_text": text} for key, text in texts.items()]
        references = [{"id": example["id"], "answers": example["answers"]} for example in examples]
        return EvalPrediction(predictions=formatted, label_ids=references)

    def exact_match(p: EvalPrediction):
        wanted = {reference["id"]: reference["answers"]["text"][0] for reference in p.label_ids}
        return {"exact_match": float(np.mean([wanted[q["id"]] == q["prediction_text"] for q in p.predictions]))}

    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        eval_examples=raw["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator
        if script_args.pad_to_max_length
        else DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training_args.fp16 else None),
        post_process_function=post_process,
        compute_metrics=exact_match,
    )
    if training_args.do_train:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.do_predict:
        predict_dataset = raw["test"].map(prepare_validation, batched=True, remove_columns=columns)
        results = trainer.predict(predict_dataset, raw["test"])
        trainer.save_metrics("predict", results.metrics)
    trainer.create_model_card(finetuned_from=script_args.model_name_or_path, tasks="question-answering")


if __name__ == "__main__":
    main()
