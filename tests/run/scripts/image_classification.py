"""Fine-tune for image classification: attributes of the package, image folders, random crops, a collator."""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from datasets import load_dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder with a folder for every class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for evaluation."})
    train_val_split: float | None = field(default=0.25, metadata={"help": "To evaluate on, without validation_dir."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Take no more."})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "Load a head of another size."})

    def __post_init__(self):
        if self.train_dir is None and self.validation_dir is None:
            raise ValueError("You must specify a train and/or validation directory.")


def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}


class Transform:
    def __init__(self, processor, augment):
        self.processor, self.augment = processor, augment

    def __call__(self, batch):
        images = [image.convert("RGB") for image in batch["image"]]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        batch["pixel_values"] = [self.crop(image) if self.augment else image for image in pixels]
        return batch

    def crop(self, image):
        down, right = torch.randint(-1, 2, (2,)).tolist()
        image = image.roll((down, right), (1, 2))
        return image.flip(2) if torch.rand(()) < 0.5 else image


class RecordMain(transformers.TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        assert __name__ == "__main__" and os.path.isabs(__file__)


def main():
    parser = transformers.HfArgumentParser((Arguments, transformers.TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    transformers.set_seed(training_args.seed)
    folders = {"train": script_args.train_dir, "validation": script_args.validation_dir}
    files = {split: os.path.join(folder, "**") for split, folder in folders.items() if folder is not None}
    data = load_dataset("imagefolder", data_files=files)
    if "validation" not in data:
        parts = data["train"].train_test_split(script_args.train_val_split)
        data["train"], data["validation"] = parts["train"], parts["test"]
    if script_args.max_train_samples is not None:
        data["train"] = data["train"].shuffle(seed=training_args.seed).select(range(script_args.max_train_samples))

    names = data["train"].features["label"].names
    config = AutoConfig.from_pretrained(
        script_args.model_name_or_path,
        num_labels=len(names),
        label2id={name: str(number) for number, name in enumerate(names)},
        id2label={str(number): name for number, name in enumerate(names)},
    )
    processor = AutoImageProcessor.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForImageClassification.from_pretrained(
        script_args.model_name_or_path, config=config, ignore_mismatched_sizes=script_args.ignore_mismatched_sizes
    )
    for split, rows in data.items():
        rows.set_transform(Transform(processor, augment=split == "train"))
    trainer = transformers.Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=collate_fn,
        processing_class=processor,
        compute_metrics=lambda p: {"accuracy": float(np.mean(np.argmax(p.predictions, axis=1) == p.label_ids))},
        callbacks=[RecordMain()],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    kwargs = {"tasks": "image-classification", "dataset": None, "tags": ["image-classification", "vision"]}
    if training_args.push_to_hub:
        trainer.push_to_hub(**kwargs)
    else:
        trainer.create_model_card(finetuned_from=script_args.model_name_or_path, **kwargs)


if __name__ == "__main__":
    main()
