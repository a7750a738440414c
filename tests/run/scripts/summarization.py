"""Fine-tune for summarization: the Seq2Seq classes, from their submodules, with generation in evaluation."""

import os
import sys
from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, HfArgumentParser, set_seed
from transformers.trainer import Trainer
from transformers.trainer_seq2seq import Seq2SeqTrainer
from transformers.training_args import TrainingArguments
from transformers.training_args_seq2seq import Seq2SeqTrainingArguments


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    train_file: str = field(metadata={"help": "A json file with the training data."})
    validation_file: str = field(metadata={"help": "A json file with the validation data."})
    max_source_length: int = field(default=32, metadata={"help": "Longer texts are cut off."})
    max_target_length: int = field(default=8, metadata={"help": "Longer summaries are cut off."})
    ignore_pad_token_for_loss: bool = field(default=True, metadata={"help": "Padding does not count in the loss."})


def main():
    parser = HfArgumentParser((Arguments, Seq2SeqTrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".yaml"):
        script_args, training_args = parser.parse_yaml_file(yaml_file=os.path.abspath(sys.argv[1]))
    else:
        script_args, training_args = parser.parse_args_into_dataclasses()
    assert isinstance(training_args, TrainingArguments)
    set_seed(training_args.seed)

    files = {"train": script_args.train_file, "validation": script_args.validation_file}
    raw = load_dataset("json", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(script_args.model_name_or_path)

    def preprocess(examples):
        inputs = tokenizer(examples["text"], max_length=script_args.max_source_length, truncation=True)
        labels = tokenizer(text_target=examples["summary"], max_length=script_args.max_target_length, truncation=True)
        inputs["labels"] = labels["input_ids"]
        return inputs

    data = raw.map(preprocess, batched=True, remove_columns=raw["train"].column_names)
    pad = -100 if script_args.ignore_pad_token_for_loss else tokenizer.pad_token_id

    def compute_metrics(eval_preds):
        lengths = [np.count_nonzero(row != tokenizer.pad_token_id) for row in eval_preds.predictions]
        return {"gen_len": float(np.mean(lengths))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=pad),
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
    )
    assert isinstance(trainer, Trainer)
    if training_args.do_train:
        train_result = trainer.train()
        trainer.save_model()
        trainer.save_metrics("train", train_result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate(max_length=script_args.max_target_length, num_beams=2, metric_key_prefix="eval")
        trainer.save_metrics("eval", metrics)
    if training_args.do_predict:
        results = trainer.predict(data["validation"], metric_key_prefix="predict", max_new_tokens=4)
        tokens = np.where(results.predictions != -100, results.predictions, tokenizer.pad_token_id)
        with open(os.path.join(training_args.output_dir, "generated_predictions.txt"), "w") as writer:
            writer.write("\n".join(tokenizer.batch_decode(tokens, skip_special_tokens=True)))
    return {}


if __name__ == "__main__":
    main()
