"""The methods of examples/methods/ in the plain loop: exact against float64 references, resumed bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from cases import EXAMPLES, Example
from models import Net, classification, steps_of
from reference import BASES, Base, Sam, flat, linear_schedule, reference_run

from hf_sharpness.loop import SharpnessAware

STEPS = steps_of(classification(64), 8, epochs=4)
FACTORS = linear_schedule(1.0, 3, len(STEPS))
EXACT = {"rtol": 1e-10, "atol": 1e-10}
by_example = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def ours(example: Example, base: Base, **options: Any) -> tuple[Any, ...]:
    model = Net().double()
    optimizer = base.torch(model.parameters())
    method = example.method_class(**{**example.settings, **options})
    return model, optimizer, SharpnessAware(method, model, optimizer, total_steps=len(STEPS))


@pytest.mark.parametrize("base", BASES, ids=str)
@by_example
def test_exact_against_the_reference(example: Example, base: Base, plain: Any) -> None:
    rates = [base.lr * factor for factor in FACTORS]
    records = reference_run(Net(), STEPS, example.expected(rates), base.reference(), rates, max_norm=0.5)
    model, optimizer, method = ours(example, base)
    weights = plain(model, STEPS, optimizer, method, FACTORS, 0.5)
    torch.testing.assert_close(torch.stack(weights), torch.stack([r.weights for r in records]), **EXACT)


@by_example
def test_accumulation_is_the_whole_batch(example: Example, plain: Any) -> None:
    base, whole, split = (
        BASES[2],
        steps_of(classification(64), 32, epochs=5),
        steps_of(classification(64), 8, 4, epochs=5),
    )
    rates = [base.lr] * len(whole)
    records = reference_run(Net(), whole, example.expected(rates), base.reference(), rates)
    model = Net().double()
    optimizer = base.torch(model.parameters())
    method = SharpnessAware(example.method(), model, optimizer, total_steps=len(whole))
    torch.testing.assert_close(plain(model, split, optimizer, method)[-1], records[-1].weights, **EXACT)


SAMS = {
    "gsam": {"alpha": 0.0, "rho": 0.3, "rho_min": 0.3},
    "friendly_sam": {"sigma": 0.0},
    "looksam": {"k": 1},
    "lesam": {"sigma": 1e9, "rho_max": 0.3, "anneal_from": 0.999},
}


@by_example
def test_sam_is_a_special_case(example: Example, plain: Any) -> None:
    base = BASES[1]
    records = reference_run(Net(), STEPS, Sam(rho=0.3), base.reference(), [base.lr] * len(STEPS))
    model, optimizer, method = ours(example, base, **SAMS[example.folder])
    torch.testing.assert_close(plain(model, STEPS, optimizer, method)[-1], records[-1].weights, **EXACT)


@by_example
def test_every_setting_matters(example: Example, plain: Any) -> None:
    """Guards the tests above: another value of any hyper-parameter is another training."""
    weights = []
    for name in [None, *example.settings]:
        other = {} if name is None else {name: type(example.settings[name])(example.settings[name] * 1.6 + 0.5)}
        other = {"anneal_from": 0.9} if name == "anneal_from" else {"decay": 0.2} if name == "decay" else other
        model, optimizer, method = ours(example, BASES[1], **other)
        weights.append(plain(model, STEPS, optimizer, method, FACTORS)[-1])
    assert all(not torch.allclose(weights[0], w, rtol=1e-6) for w in weights[1:])


@pytest.mark.parametrize("steps", [10, 11, 12])
@by_example
def test_resuming_is_bit_for_bit(example: Example, steps: int, plain: Any, tmp_path: Any) -> None:
    """Through torch.save and torch.load with weights_only; for LookSAM from every place in its turn."""
    whole = ours(example, BASES[2])
    expected = plain(whole[0], STEPS, whole[1], whole[2])
    first, second = ours(example, BASES[2]), ours(example, BASES[2])
    plain(first[0], STEPS[:steps], *first[1:])
    for number, part in enumerate(first):
        torch.save(part.state_dict(), tmp_path / str(number))
    for number, part in enumerate(second):
        part.load_state_dict(torch.load(tmp_path / str(number), weights_only=True))
    weights = plain(second[0], STEPS[steps:], *second[1:])
    assert torch.equal(weights[-1], expected[-1])


@by_example
def test_accelerates_checkpoints_hold_what_is_kept(example: Example, tmp_path: Any) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, method = ours(example, BASES[2])
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(method)

    def train(steps: Any) -> torch.Tensor:
        for (batch,) in steps:

            def closure(batch: Any = batch) -> torch.Tensor:
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                return loss.detach()

            method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
        return flat(model)

    train(STEPS[:4])
    accelerator.save_state(str(tmp_path))
    through = train(STEPS[4:8])
    accelerator.load_state(str(tmp_path))
    assert torch.equal(train(STEPS[4:8]), through)


@by_example
def test_overflow_skips_the_step_and_nothing_else(example: Example) -> None:
    """With a GradScaler: the scale makes no difference, nor does a step that overflows and is made again."""
    plain, scaled = Scaled(example, 1.0), Scaled(example, 2.0**10)
    for number, (batch,) in enumerate(STEPS[:8]):
        plain.step(batch, number)
        if number in (1, 4):
            before = flat(scaled.model)
            scaled.step(batch, number, overflow=True)
            assert torch.equal(flat(scaled.model), before)
        scaled.step(batch, number)
        torch.testing.assert_close(flat(scaled.model), flat(plain.model), rtol=1e-9, atol=1e-9)
    assert scaled.scaler.get_scale() == 2.0**8


class Scaled:
    """A loop with a GradScaler."""

    def __init__(self, example: Example, scale: float):
        self.model = Net().double()
        self.optimizer = BASES[1].torch(self.model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.method = SharpnessAware(
            example.method(), self.model, self.optimizer, scaler=self.scaler, total_steps=len(STEPS)
        )

    def step(self, batch: Any, number: int, overflow: bool = False) -> None:
        def closure() -> torch.Tensor:
            loss = self.model(**batch)["loss"]
            self.scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
            return loss.detach()

        self.method.engine.course.progress.steps_made = number
        self.method.backward(closure)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


@by_example
def test_one_file_of_at_most_70_lines_and_one_line_of_entry_point(example: Example) -> None:
    files = [p for p in example.path.iterdir() if p.suffix == ".py"]
    assert [p.stem for p in files] == [example.module]
    assert len(files[0].read_text().splitlines()) <= 70
    setup = (example.path / "setup.cfg").read_text()
    assert setup.rstrip().endswith(
        f"hf_sharpness.methods =\n    {example.method_class.name} = {example.module}:{example.cls}"
    )
