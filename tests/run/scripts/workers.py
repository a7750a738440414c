"""Things pickled into processes that multiprocessing spawns: a data set's class, a collator, a whole training."""

import os
import sys

import torch
import torch.multiprocessing
from torch import nn
from transformers import Trainer, TrainingArguments


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"x": torch.full((2,), float(index)), "labels": torch.tensor(float(index**2))}


class MyArguments(TrainingArguments):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def forward(self, x, labels):
        return {"loss": (self.layer(x / 16).squeeze(-1) - labels / 256).square().mean()}


def collate(items):
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def train(index, output_dir, optim, workers):
    args = MyArguments(
        output_dir,
        optim=optim,
        use_cpu=True,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=workers,
    )
    trainer = Trainer(Model(), args, train_dataset=Squares(), data_collator=collate)
    trainer.train()
    torch.save(trainer.model.layer.weight, os.path.join(output_dir, f"weight-{workers}.pt"))


if __name__ == "__main__":
    output_dir, optim = sys.argv[1:]
    os.makedirs(output_dir, exist_ok=True)
    torch.multiprocessing.spawn(train, (output_dir, optim, 0), nprocs=1)
    torch.multiprocessing.set_start_method("spawn", force=True)
    train(0, output_dir, optim, 1)
