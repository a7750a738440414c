"""What the snippets of the first pages take for granted: a model, data and a loss."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def loss_of(model, batch):
    return model(**batch)["loss"]


model = Net()
train_dataset = [{"x": torch.randn(8), "labels": i % 2} for i in range(32)]
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
data = [{"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 0, 1])} for _ in range(3)]
