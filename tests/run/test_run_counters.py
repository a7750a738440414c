"""What a Trainer subclass counts in Python is what the first passes counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import Net, classification

ITEMS = classification(48, torch.float32)


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
@pytest.mark.parametrize("scope", ["global", "micro_batch"])
def test_in_training(optim: str, scope: str, train: Any) -> None:
    """Tallies and logs of a compute_loss are those of the clean passes, in number and value."""
    import hf_sharpness

    if (optim, scope) == ("xsam", "micro_batch"):
        pytest.skip("XSAM has no such scope")

    class Counting:
        seen: int = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            self.seen += 1
            self.__dict__.setdefault("losses", []).append((loss[0] if isinstance(loss, tuple) else loss).item())
            self.log({"mine": self.losses[-1]})
            return loss

    class Ours(Counting, hf_sharpness.Trainer):
        pass

    class Stock(Counting, transformers.Trainer):
        pass

    options = {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    stock = train(Net(), ITEMS, stock=True, trainer_class=Stock, **options)
    ours = train(Net(), ITEMS, trainer_class=Ours, optim=optim, sam_scope=scope, **options)
    assert ours.trainer.seen == stock.trainer.seen == 6
    assert ours.trainer.losses == stock.trainer.losses
    assert ours.series("mine") == stock.series("mine")


def test_training_step_without_super(train: Any) -> None:
    """A training_step that goes its own way is repeated whole."""
    import hf_sharpness

    class Own(hf_sharpness.Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    run = train(Net(), ITEMS, trainer_class=Own, optim="sam", sam_rho=0.05, max_steps=1)
    assert run.series("perturbation_norm") == pytest.approx([0.05])
    train(Net(), ITEMS, trainer_class=Own, optim="sgd", max_steps=1)
