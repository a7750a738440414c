"""A script that mixes this package's classes in itself, and trains with them."""

import dataclasses
import pickle

import torch
import transformers
from torch import nn
from transformers import HfArgumentParser

from hf_sharpness import SharpnessArguments, SharpnessTrainerMixin


@dataclasses.dataclass
class MyConfig(SharpnessArguments, transformers.TrainingArguments):
    mine: int = 3


@dataclasses.dataclass
class MySeq2SeqConfig(SharpnessArguments, transformers.Seq2SeqTrainingArguments): ...


class MyTrainer(SharpnessTrainerMixin, transformers.Trainer): ...


class MySeq2SeqTrainer(SharpnessTrainerMixin, transformers.Seq2SeqTrainer): ...


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}


for config, trainer in (MyConfig, MyTrainer), (MySeq2SeqConfig, MySeq2SeqTrainer):
    torch.manual_seed(0)
    data = [{"x": torch.randn(8), "labels": i % 2} for i in range(16)]
    (args,) = HfArgumentParser(config).parse_args_into_dataclasses()
    again = pickle.loads(pickle.dumps(args))
    assert type(again) is config and again.to_dict() == args.to_dict()
    assert isinstance(args, SharpnessArguments) and args.uses_sharpness
    ours = trainer(model=Net(), args=args, train_dataset=data)
    ours.train()
    print(config.__name__, [entry["sharpness"] for entry in ours.state.log_history if "sharpness" in entry])
    print([p.sum().item() for p in ours.model.parameters()])
