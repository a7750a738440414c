"""Fine-tune for image classification: attributes of the package, an image folder, a collator defined here."""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "Path to a pretrained model."})
    image_folder: str = field(metadata={"help": "A folder with train and validation."})


def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}


class Transform:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, batch):
        images = [image.convert("RGB") for image in batch["image"]]
        batch["pixel_values"] = list(self.processor(images, return_tensors="pt")["pixel_values"])
        return batch


class RecordMain(transformers.TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        assert __name__ == "__main__" and os.path.isabs(__file__)


def main():
    parser = transformers.HfArgumentParser((Arguments, transformers.TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    transformers.set_seed(training_args.seed)
    data = load_dataset("imagefolder", data_dir=script_args.image_folder)
    processor = AutoImageProcessor.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForImageClassification.from_pretrained(script_args.model_name_or_path)
    for split in data.values():
        split.set_transform(Transform(processor))
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
    trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
