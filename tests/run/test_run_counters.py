"""What a Trainer subclass counts in Python is what the first passes counted."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from models import Net, classification

from hf_sharpness.training.counters import counters_kept

ITEMS = classification(48, torch.float32)


class Owner(SimpleNamespace):
    def count(self) -> None:
        self.number += 1
        self.name = "other"
        self.history["train"]["loss"].append(1.0)
        self.history["train"]["new"].append(1.0)
        self.recent.append(3)
        self.seen.add("b")
        self.kinds["x"] += 1
        self.tensors["steps"] += 1
        self.tensors["rows"].append(torch.ones(2))
        self.steps += 1
        self.order["b"] = 2

    def count_and_fail(self) -> None:
        self.count()
        raise KeyError


def owner() -> Owner:
    return Owner(
        number=1,
        name="one",
        history={"train": defaultdict(list, loss=[0.5])},
        recent=deque([1, 2], maxlen=2),
        seen={"a"},
        kinds=Counter(x=1),
        tensors={"steps": torch.tensor(1), "rows": []},
        steps=torch.tensor(5),
        order=OrderedDict(a=1),
    )


def test_kept() -> None:
    """Values and identities are as before, and inside, counting works."""
    mine = owner()
    mine.count()
    expected = repr(mine)
    kept = dict(vars(mine))
    with counters_kept(mine):
        mine.count()
        assert mine.number == 3
        assert mine.history["train"]["loss"] == [0.5, 1.0, 1.0]
        assert mine.recent.maxlen == 2
        assert list(mine.recent) == [3, 3]
    assert repr(mine) == expected
    assert all(vars(mine)[name] is value for name, value in kept.items())


def test_kept_after_an_error() -> None:
    mine = owner()
    expected = repr(mine)
    with pytest.raises(KeyError), counters_kept(mine):
        mine.count_and_fail()
    assert repr(mine) == expected


@pytest.mark.parametrize("data", [[0] * 100_001, [[0]] * 1_001])
def test_data_are_not_copied(data: list[Any]) -> None:
    mine = SimpleNamespace(big=data, train_dataset=[{"x": 1}], model=torch.nn.Linear(1, 1), number=0)
    with counters_kept(mine):
        assert mine.big is data
        assert mine.train_dataset is vars(mine)["train_dataset"]
        mine.number += 1
    assert mine.number == 0


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
    """A training_step that goes its own way would make wsam a silent no-op: an error says so."""
    import hf_sharpness

    class Own(hf_sharpness.Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    with pytest.raises(RuntimeError, match=r"training_step does not call super\(\)"):
        train(Net(), ITEMS, trainer_class=Own, optim="sam", max_steps=1)
    train(Net(), ITEMS, trainer_class=Own, optim="sgd", max_steps=1)
