"""Fine-tune for question answering: a Trainer subclass from a sibling module, evaluation with post-processing."""

import os
import sys
from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from trainer_qa import QuestionAnsweringTrainer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    train_file: str = field(metadata={"help": "A json file with the training data."})
    validation_file: str = field(metadata={"help": "A json file with the validation data."})
    max_seq_length: int = field(default=48, metadata={"help": "Longer sequences are cut off."})


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        script_args, training_args = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        script_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files, field="data")
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForQuestionAnswering.from_pretrained(script_args.model_name_or_path)

    def prepare(examples):
        features = tokenizer(
            examples["question"],
            examples["context"],
            truncation="only_second",
            max_length=script_args.max_seq_length,
            padding="max_length",
            return_offsets_mapping=True,
        )
        features["start_positions"], features["end_positions"] = [], []
        for number, answers in enumerate(examples["answers"]):
            start = answers["answer_start"][0]
            end = start + len(answers["text"][0])
            tokens = [
                token
                for token, (span, part) in enumerate(
                    zip(features["offset_mapping"][number], features.sequence_ids(number), strict=True)
                )
                if part == 1 and span[0] >= start and span[1] <= end
            ]
            features["start_positions"].append(tokens[0] if tokens else 0)
            features["end_positions"].append(tokens[-1] if tokens else 0)
        return features

    columns = raw["train"].column_names
    data = raw.map(prepare, batched=True, remove_columns=columns)

    def post_process(examples, features, predictions):
        starts, ends = (np.argmax(logits, axis=1) for logits in predictions[:2])
        texts = []
        for example, feature, start, end in zip(examples, features, starts, ends, strict=True):
            span = feature["offset_mapping"]
            texts.append(example["context"][span[start][0] : span[end][1]])
        return EvalPrediction(predictions=texts, label_ids=[example["answers"]["text"][0] for example in examples])

    def exact_match(p: EvalPrediction):
        return {"exact_match": float(np.mean([a == b for a, b in zip(p.predictions, p.label_ids, strict=True)]))}

    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        eval_examples=raw["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        post_process_function=post_process,
        compute_metrics=exact_match,
    )
    if training_args.do_train:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
    if training_args.do_eval:
        trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
