"""Fits a line, as its flags say."""

import torch
from torch import nn
from transformers import HfArgumentParser, Trainer, TrainingArguments


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def forward(self, x, labels):
        return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}


def main(flags=None):
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(flags)
    items = [{"x": torch.full((2,), n / 16), "labels": torch.tensor(n / 8)} for n in range(16)]
    trainer = Trainer(Line(), args, train_dataset=items, eval_dataset=items)
    if args.do_eval:
        print(trainer.evaluate())
    else:
        trainer.train()
        print("optimizer", type(trainer.optimizer).__name__)
        trainer.save_state()
        trainer.save_model()


if __name__ == "__main__":
    main()
