"""A script that trains a classifier for a few steps and reports as its flags say (`--report_to`)."""

import torch
from torch import nn
from transformers import HfArgumentParser

from hf_sharpness import Trainer, TrainingArguments


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


if __name__ == "__main__":
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    torch.manual_seed(0)
    rows = [{"x": torch.randn(4), "labels": i % 2} for i in range(32)]
    trainer = Trainer(model=Net(), args=args, train_dataset=rows)
    trainer.train()
    trainer.save_state()
