"""Fits a line with arguments of its own; flags for the optimizer are read and left alone."""

import argparse
import sys

import tiny
import torch
from transformers import Trainer, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--optim")
parser.add_argument("--optimizer")
parser.add_argument("--eval", action="store_true")
parser.add_argument("--status", type=int)
options, _ = parser.parse_known_args()

items = [{"x": torch.full((2,), n / 16), "labels": torch.tensor(n / 8)} for n in range(16)]
for max_steps in 2, 1:
    args = TrainingArguments(
        "out",
        optim="adafactor",
        learning_rate=0.01,
        max_steps=max_steps,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(tiny.Line(), args, train_dataset=items, eval_dataset=items)
    if options.eval:
        trainer.evaluate()
    else:
        trainer.train()
        print("optimizer", type(trainer.optimizer.optimizer).__name__, args.optim, args.learning_rate)
sys.exit(options.status)
