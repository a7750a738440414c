"""Train a small MLP on scikit-learn's digits with transformers' Trainer. The script knows nothing of this package."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(images, classes):
    rows = torch.tensor(images, dtype=torch.float32) / 16
    return [{"x": row, "labels": int(label)} for row, label in zip(rows, classes, strict=True)]


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


images, classes = load_digits(return_X_y=True)
images, test_images, classes, test_classes = train_test_split(images, classes, test_size=500, random_state=0)
images, eval_images, classes, eval_classes = train_test_split(images, classes, test_size=300, random_state=0)

arguments = TrainingArguments("out", learning_rate=3e-3, num_train_epochs=12, per_device_train_batch_size=32)
set_seed(arguments.seed)
trainer = Trainer(
    model=Net(),
    args=arguments,
    train_dataset=examples(images[:300], classes[:300]),
    eval_dataset=examples(eval_images, eval_classes),
    compute_metrics=accuracy,
)
trainer.train()
print(trainer.evaluate())
print(trainer.predict(examples(test_images, test_classes)).metrics)
