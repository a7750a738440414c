"""Perturbing some of the parameters: against a float64 reference of its own, and which parameters a name means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, Record, TinyLM, accumulate, classification, steps_of
from reference import BASES, Base, Spec, by_name, flat
from reference.targets import restricted
from torch import Tensor, nn
from torch.nn import functional as F

import hf_sharpness
from hf_sharpness import SAM, WSAM
from hf_sharpness.engine.targets import Targets
from hf_sharpness.engine.weights import Weights
from hf_sharpness.methods import Options

EXACT = {"rtol": 1e-9, "atol": 1e-9}
STEPS = steps_of(classification(48), 8, accumulation=2, epochs=2)
SPECS = by_name(
    *("sam", "sam-k3", "asam", "asam-k2", "wsam-coupled", "wsam-coupled-k3", "wsam-decoupled", "wsam-decoupled-k3"),
    *("xsam", "xsam-k3", "xsam-beyond", "xsam-adaptive"),
)
by_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def ours(model: nn.Module, names: str, spec: Spec, base: Base, steps: Any) -> list[dict[str, Any]]:
    spec = Spec(spec.name, spec.method, spec.settings | {"target_modules": names})
    optimizer = base.torch(model.parameters())
    method, seen = spec.ours(model, optimizer), []
    for number, step in enumerate(steps):
        if number == 0 and spec.method == "xsam":
            method.start_epoch()
        method.backward([lambda b=batch, s=step: accumulate(model, b, len(s)) for batch in step], measure=True)
        optimizer.step()
        optimizer.zero_grad()
        metrics = method.metrics
        norms = float(metrics["ascent_grad_norm"]), float(metrics["perturbation_norm"])
        seen.append({"weights": flat(model), "norm": norms[0], "moved": norms[1]})
    return seen


@pytest.mark.parametrize(
    ("value", "names"),
    [("last", ["last.weight", "last.bias"]), ("*.weight", ["first.weight", "last.weight"])],
    ids=["last", "weights"],
)
@by_spec
def test_every_method_perturbs_these_alone(spec: Spec, value: str, names: list[str]) -> None:
    model, base = Net().double(), BASES[1]
    expected = restricted(model, names, spec, base, STEPS)
    for now, then in zip(ours(model, value, spec, base, STEPS), expected, strict=True):
        torch.testing.assert_close(now["weights"], then["weights"], **EXACT)
        assert now["norm"] == pytest.approx(then["norm"])
        assert now["moved"] == pytest.approx(then["moved"])


@pytest.mark.parametrize("name", ["sam", "wsam-coupled", "wsam-decoupled"])
def test_with_a_part_of_the_batch(name: str) -> None:
    (spec,) = by_name(name)
    spec = Spec(name, spec.method, spec.settings | {"fraction": 0.5})
    model, base = Net().double(), BASES[2]
    expected = restricted(model, ["first.bias"], spec, base, STEPS)
    seen = ours(model, "first.bias", spec, base, STEPS)
    torch.testing.assert_close(seen[-1]["weights"], expected[-1]["weights"], **EXACT)


@by_spec
def test_all_of_them_is_the_step_without_names(spec: Spec) -> None:
    """Bit for bit."""
    model, twin = Net().double(), Net().double()
    everything = ours(model, "*", spec, BASES[2], STEPS[:3])
    optimizer = BASES[2].torch(twin.parameters())
    method = spec.ours(twin, optimizer)
    for number, step in enumerate(STEPS[:3]):
        if number == 0 and spec.method == "xsam":
            method.start_epoch()
        method.backward([lambda b=batch, s=step: accumulate(twin, b, len(s)) for batch in step])
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(everything[-1]["weights"], flat(twin))


def test_the_others_stay_where_they_are_in_a_replay() -> None:
    seen = Record()

    class Looking(Net):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            seen.items.append({name: p.detach().clone() for name, p in self.named_parameters()})
            return super().forward(*args, **kwargs)

    model = Looking().double()
    SAM(model, BASES[0].torch(model.parameters()), target_modules="last").backward(
        lambda: accumulate(model, STEPS[0][0], 1)
    )
    first, second = seen.items
    assert torch.equal(first["first.weight"], second["first.weight"])
    assert not torch.equal(first["last.weight"], second["last.weight"])


def test_weights_on_one_memory() -> None:
    """Parameters that overlap are perturbed as one; here the copy of what is named goes with it."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = TinyLM()
            self.lm.head.weight = nn.Parameter(self.lm.embed.weight.data)

        def forward(self, **batch: Any) -> Any:
            return self.lm(**batch)

    model = Viewing().double()
    method = SAM(model, BASES[0].torch(model.parameters()), rho=0.3, target_modules="mix, embed")
    batch = {"input_ids": torch.arange(8).reshape(2, 4), "labels": torch.arange(8).reshape(2, 4)}
    before = flat(model)
    method.backward(lambda: accumulate(model, batch, 1), measure=True)
    assert torch.equal(flat(model), before)
    assert float(method.metrics["perturbation_norm"]) == pytest.approx(0.3)


# Names.


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(12))
        self.scale = MyRMSNorm()
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 2))


class MyRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


def chosen(value: str, model: nn.Module, params: Any = None) -> set[str]:
    optimizer = torch.optim.SGD(model.parameters() if params is None else params, lr=0.1)
    ids = Targets(value, Weights(model, optimizer)).ids
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_names_globs_and_words() -> None:
    model = Layered()
    assert chosen("layers.1", model) == {
        f"layers.1.{n}.{k}" for n in (0, 1) for k in ("weight", "bias")
    }  # not layers.10
    assert chosen("layers.1*.0.bias", model) == {f"layers.{n}.0.bias" for n in (1, 10, 11)}
    assert chosen("1.bias", model) == {*(f"layers.{n}.1.bias" for n in range(12)), "classifier.1.bias"}
    norms = {f"layers.{n}.1.{k}" for n in range(12) for k in ("weight", "bias")} | {"scale.gain"}
    assert chosen("norm", model) == norms
    assert chosen("head", model) == {"classifier.1.weight", "classifier.1.bias"}
    assert chosen("norm, head , embed", model) == norms | {"classifier.1.weight", "classifier.1.bias", "embed.weight"}


def test_wrappers_do_not_change_names() -> None:
    model = Layered()
    compiled = torch.compile(model, backend="eager")
    assert {n.removeprefix("_orig_mod.") for n in chosen("layers.1, head", compiled)} == chosen("layers.1, head", model)


def test_a_language_models_head_is_what_it_says() -> None:
    class Saying(TinyLM):
        def get_output_embeddings(self) -> nn.Module:
            return self.mix

    assert chosen("head", Saying()) == {"mix.weight", "mix.bias"}
    with pytest.raises(ValueError, match=r"target_modules='head': the head is tied to the embedding embed"):
        chosen("head", TinyLM(tied=True))


def test_what_matches_nothing_is_refused() -> None:
    model = Layered()
    with pytest.raises(ValueError, match=r"='norm, layer.1': 'layer.1' matches no parameter.*'layers.11.1'"):
        chosen("norm, layer.1", model)
    with pytest.raises(ValueError, match=r"target_modules='head': 'head' matches no parameter that is trained"):
        chosen("head", model, model.embed.parameters())
    with pytest.raises(ValueError, match="matches no parameter"):
        chosen("layers.(1|2)", model)  # no regular expression
    for value in ("", "norm,", " , "):
        with pytest.raises(ValueError, match=r"target_modules=.*must be names or globs"):
            Options(target_modules=value)


def test_the_trainer_says_what_is_perturbed(train: Any, capsys: Any) -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(lambda: nn.LayerNorm(8))

    settings = {"optim": "sam", "sam_target_modules": "norm", "max_steps": 2, "sam_rho": 0.5}
    run = train(Normed(), classification(16, torch.float32), **settings)
    assert "SAM: rho 0.5, perturbing norm (16 of 99 weights), on" in capsys.readouterr().err
    assert run.series("perturbation_norm") == pytest.approx([0.5, 0.5], abs=1e-5)
    with pytest.raises(ValueError, match="'norms' matches no parameter"):
        train(Normed(), classification(16), **settings | {"sam_target_modules": "norms"})
    pytest.importorskip("deepspeed")
    with pytest.raises(ValueError, match="sam_target_modules='norm' does not run under DeepSpeed"):
        train(Normed(), classification(16), deepspeed={"zero_optimization": {"stage": 2}}, **settings)


def test_memory_is_that_of_what_is_perturbed() -> None:
    """While a replay runs: a copy of the named weights, and no gradient of the first pass."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(8)])
    method = SAM(model, BASES[0].torch(model.parameters()), target_modules="3")
    sizes = Record()

    def closure() -> Tensor:
        passes = method.engine.passes
        if passes is not None:
            sizes.items.append((sum(t.numel() for t in passes.saved), len(passes.live)))
            assert all(p.grad is None for p in model.parameters())
        loss = F.mse_loss(model(torch.ones(2, 64)), torch.ones(2, 64))
        loss.backward()
        return loss

    method.backward(closure)
    assert sizes.items == [(64 * 64, 1)]


@pytest.mark.checked
@pytest.mark.parametrize("method_class", [SAM, WSAM])
def test_the_check_looks_at_all_parameters(method_class: Any) -> None:
    """A difference between passes shows in parameters that are not perturbed too."""
    model = Net().double()
    method = method_class(model, BASES[0].torch(model.parameters()), target_modules="last.bias", check="error")
    calls = Record()

    def closure() -> Tensor:
        loss = accumulate(model, STEPS[0][0], 1)
        calls.forwards += 1
        model.first.weight.grad += 0.5 * calls.forwards
        return loss

    with pytest.raises(RuntimeError, match="does not repeat the first"):
        method.backward(closure)


def test_a_shared_config_takes_names(tmp_path: Any) -> None:
    arguments = hf_sharpness.SharpnessArguments(optim="sam", sam_target_modules="norm, head", sam_fraction=0.5)
    arguments.save_pretrained(tmp_path)
    loaded = hf_sharpness.SharpnessArguments.from_pretrained(tmp_path)
    assert (loaded.sam_target_modules, loaded.sam_fraction) == ("norm, head", 0.5)
