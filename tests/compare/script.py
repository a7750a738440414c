"""A script as people write them: its own model and arguments, one flag, no test split."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


parser = argparse.ArgumentParser()
parser.add_argument("--hidden", type=int, default=32)
options = parser.parse_args()
images, classes = load_digits(return_X_y=True)
data = [
    {"x": torch.tensor(image, dtype=torch.float32) / 16, "labels": int(label)}
    for image, label in zip(images, classes, strict=True)
]
arguments = TrainingArguments("out", learning_rate=1e-2, max_steps=8, per_device_train_batch_size=32, report_to="none")
set_seed(arguments.seed)
trainer = Trainer(
    model=Net(options.hidden),
    args=arguments,
    train_dataset=data[:400],
    eval_dataset=data[1500:],
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
)
trainer.train()
print(trainer.evaluate())
