"""A classifier that takes the number of items and does not use it, as transformers' own do; prints what it logged."""

import json
import os
import sys

import torch
from transformers import HfArgumentParser

from hf_sharpness import Trainer, TrainingArguments


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x, labels, **kwargs):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(sys.argv[1:])
torch.manual_seed(0)
model, data = Classifier(), torch.randn(64, 4)
trainer = Trainer(model=model, args=args, train_dataset=[{"x": x, "labels": i % 2} for i, x in enumerate(data)])
trainer.train()
if os.environ.get("RANK", "0") == "0":
    print("LOGGED", json.dumps([entry for entry in trainer.state.log_history if "loss" in entry]))
