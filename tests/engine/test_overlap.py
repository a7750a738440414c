"""Parameters that lie on one memory without being one object, against a model that has one parameter there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Record
from reference import SPECS, Base, Spec, by_name, reference_run
from torch import Tensor, nn

from hf_sharpness import SAM

SGD = Base("sgd", lr=0.1)
ROWS, WIDTH = 12, 6


class Tied(nn.Module):
    """A bag of embeddings and an output layer made of the numbers in one flat parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.numbers = nn.Parameter(torch.randn(ROWS * WIDTH + WIDTH, dtype=torch.float64))
        self.middle = nn.Linear(WIDTH, WIDTH).double()

    def embedding(self) -> Tensor:
        return self.numbers[: ROWS * WIDTH].view(ROWS, WIDTH)

    def output(self) -> Tensor:
        return self.embedding()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = torch.tanh(self.middle(self.embedding()[x])) @ self.output().t()
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Shifted(Tied):
    """The output layer begins WIDTH numbers after the embedding: the two overlap in part."""

    def output(self) -> Tensor:
        return self.numbers[WIDTH:].view(ROWS, WIDTH)


class Transposed(Tied):
    """The embedding is stored the other way round, and the output layer is the memory as it is."""

    def embedding(self) -> Tensor:
        return self.numbers[: ROWS * WIDTH].view(WIDTH, ROWS).t()

    def output(self) -> Tensor:
        return self.numbers[: ROWS * WIDTH].view(ROWS, WIDTH)


class ByHand(nn.Module):
    """The same, with a parameter for each layer on the memory of the flat one."""

    def __init__(self, tied: Tied) -> None:
        super().__init__()
        self.flat = tied.numbers.detach().clone()
        numbers, tied.numbers = tied.numbers, nn.Parameter(self.flat)
        with torch.no_grad():
            self.embed, self.out = nn.Parameter(tied.embedding()), nn.Parameter(tied.output())
        tied.numbers = numbers
        self.middle = nn.Linear(WIDTH, WIDTH).double()
        self.middle.load_state_dict(tied.middle.state_dict())

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = torch.tanh(self.middle(self.embed[x])) @ self.out.t()
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data(steps: int = 4) -> list[list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randint(0, ROWS, (8,), generator=generator)  # noqa: E731
    return [[{"x": draw(), "labels": draw()}, {"x": draw(), "labels": draw()}] for _ in range(steps)]


@pytest.mark.parametrize("tied", [Tied, Shifted, Transposed])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_memory_moves_as_one_parameter(
    spec: Spec, tied: Callable[[], Tied], plain: Callable[..., list[Tensor]]
) -> None:
    steps = data()
    model = ByHand(tied())
    expected = reference_run(tied(), steps, spec.reference(), SGD.reference(), [0.1] * len(steps))
    optimizer = SGD.torch(model.parameters())
    method = spec.ours(model, optimizer)
    plain(model, steps, optimizer, method)
    numbers = ROWS * WIDTH + WIDTH
    torch.testing.assert_close(model.flat, expected[-1].weights[:numbers], rtol=1e-10, atol=1e-10)
    handed = expected[-1].handed
    assert float(method.metrics["ascent_grad_norm"]) == pytest.approx(handed.ascent_grad_norm)
    assert float(method.metrics["perturbation_norm"]) == pytest.approx(handed.perturbation_norm)


class LateOutput(ByHand):
    """The output layer takes part from the second pass of a step on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.record = Record()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.record.forwards += 1
        out = self.out if self.record.forwards % 2 == 0 else self.out.detach()
        logits = torch.tanh(self.middle(self.embed[x])) @ out.t()
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_parameter_that_joins_in_late_lies_on_memory_that_has_moved(plain: Callable[..., list[Tensor]]) -> None:
    steps = [[micro_batches[0]] for micro_batches in data(1)]
    model, twin = LateOutput(Shifted()), ByHand(Shifted())
    plain(model, steps, (optimizer := SGD.torch(model.parameters())), SAM(model, optimizer, rho=0.2))

    batch = steps[0][0]
    params = [twin.embed, *twin.middle.parameters()]
    twin.out.requires_grad_(False)
    twin(**batch)["loss"].backward()
    norm = torch.stack([p.grad.norm() for p in params]).norm()
    before = [twin.flat.clone(), *(p.detach().clone() for p in params[1:])]
    with torch.no_grad():
        for parameter in params:
            parameter += 0.2 * parameter.grad / norm
            parameter.grad = None
    twin.out.requires_grad_(True)
    twin(**batch)["loss"].backward()
    with torch.no_grad():
        twin.flat.copy_(before[0])
        for parameter, value in zip(params[1:], before[1:], strict=True):
            parameter.copy_(value)
        for parameter in twin.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(model.flat, twin.flat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_neighbours_on_one_storage_are_parameters_of_their_own(spec: Spec, plain: Callable[..., list[Tensor]]) -> None:
    """As the weights of a recurrent layer on an accelerator: nothing overlaps."""

    class Neighbours(nn.Module):
        def __init__(self, apart: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            flat = torch.randn(ROWS * WIDTH + WIDTH * ROWS, dtype=torch.float64)
            first, second = flat[: ROWS * WIDTH].view(ROWS, WIDTH), flat[ROWS * WIDTH :].view(ROWS, WIDTH)
            self.embed = nn.Parameter(first.clone() if apart else first)
            self.out = nn.Parameter(second.clone() if apart else second)

        forward = ByHand.forward
        middle = nn.Identity()

    weights = []
    for apart in (True, False):
        model = Neighbours(apart)
        optimizer = Base("adamw", lr=0.01).torch(model.parameters())
        weights.append(plain(model, data(), optimizer, spec.ours(model, optimizer))[-1])
    assert torch.equal(*weights)


def test_a_buffer_on_the_memory_of_a_parameter_moves_with_it(plain: Callable[..., list[Tensor]]) -> None:
    class Table(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Parameter(torch.randn(ROWS, WIDTH, dtype=torch.float64))
            self.register_buffer("table", self.embed.data if shared else None)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.seen += 1
            table = self.embed.detach() if self.table is None else self.table
            logits = torch.tanh(self.embed[x]) @ table.clone().t()
            return {"loss": nn.functional.cross_entropy(logits, labels)}

    ends: list[Any] = []
    for shared in (True, False):
        model = Table(shared)
        optimizer = SGD.torch(model.parameters())
        plain(model, data(), optimizer, SAM(model, optimizer, rho=0.2))
        ends.append(model.embed.detach())
        assert float(model.seen) == 8  # two micro-batches in each of four steps
    assert torch.equal(*ends)


def test_memory_that_is_read_as_two_types_is_refused(plain: Callable[..., list[Tensor]]) -> None:
    model = ByHand(Tied())
    model.out = nn.Parameter(model.embed.detach().view(torch.float32).view(ROWS, -1))
    optimizer = SGD.torch(model.parameters())
    method = SAM(model, optimizer)

    def closure() -> Tensor:
        loss = model.embed.sum() + model.out.sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"same memory.*make one parameter"):
        method.backward(closure)
