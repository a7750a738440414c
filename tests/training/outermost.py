"""What the tests of the wrapper of the outermost training_step share."""

from __future__ import annotations

import pytest
from models import Net, classification
from torch import nn

import hf_sharpness

ITEMS = classification(96)
OPTIONS = {"max_steps": 3, "learning_rate": 0.1, "max_grad_norm": 0.0, "base_optim": "sgd"}
SAM = {"optim": "sam", "sam_rho": 0.2}
METHODS = [
    SAM,
    SAM | {"sam_scope": "micro_batch"},
    {"optim": "wsam", "wsam_mode": "coupled", "sam_rho": 0.2},
    {"optim": "wsam", "wsam_mode": "decoupled", "sam_rho": 0.2},
    {"optim": "xsam", "sam_rho": 0.2},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())))
Ours = hf_sharpness.Trainer


def with_dropout() -> Net:
    return Net(lambda: nn.Dropout(0.3)).double()
