"""Two gloo ranks, the Trainer under DeepSpeed's ZeRO stages 1, 2 and 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zero_trainers import (
    ADAM,
    SGD,
    STAGES,
    STEPS,
    config,
    dropout_and_norm,
    message,
    parts,
    parts_as_they_are,
    staged,
    trained,
    weights,
    zero_trainer,
)

# isort: split
# Whatever imports DeepSpeed or Accelerate comes after that, which sets them up.

import deepspeed
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from launch import case
from models import Net, Record, Saboteur, classification
from reference import by_name
from safetensors.torch import load_file
from specs_of_modes import BETWEEN_OF_3, MAX_NORM, METHODS, Branching, named
from torch import nn

import hf_sharpness


@staged(*[spec.name for spec in [*METHODS, *BETWEEN_OF_3]])
def zero(directory: Path, stage: int, method: str) -> dict[str, Any]:
    """The same batches as `rank_batches` gives each rank."""
    return trained(directory, Net(), config(stage), **SGD, **named(method).arguments())


@staged("asam-k2", "wsam-decoupled-k3", "wsam-preconditioned")
def adam(directory: Path, stage: int, method: str) -> dict[str, Any]:
    """AdamW with weight decay for some parameters only, a schedule, clipping, and other ways to cut and reduce.

    PReLU has a single weight, after which the alignment leaves a gap."""
    zero = {"sub_group_size": 20, "overlap_comm": True, "round_robin_gradients": True, "parameter_alignment": True}
    arguments = SGD | {"optim_args": None} | ADAM | by_name(method)[0].arguments()
    return trained(directory, Net(nn.PReLU), config(stage, zero), **arguments)


AS_STOCK = {
    "stock": {"optim": "sgd"},
    "gamma_0": {"optim": "wsam", "wsam_gamma": 0.0},
    "rho_0": {"optim": "wsam", "wsam_mode": "decoupled", "wsam_gamma": 0.5, "sam_rho": 0.0},
}


@staged(*AS_STOCK)
def stock(directory: Path, stage: int, name: str) -> dict[str, Any]:
    arguments = {"learning_rate": 0.05, "lr_scheduler_type": "linear", "max_grad_norm": MAX_NORM, "max_steps": STEPS}
    arguments |= {"library": transformers} if name == "stock" else {"base_optim": "sgd"}
    model = dropout_and_norm()
    result = trained(directory, model, config(stage), **arguments, **AS_STOCK[name])
    return result | {"buffers": [buffer.clone() for buffer in model.buffers()]}


HALF = {
    "bf16": {"bf16": {"enabled": True}},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 17, "hysteresis": 1}},
}
"""fp16 begins with a scale that is too large."""


@staged("bf16-sam", "bf16-wsam-decoupled", "autocast-sam", "fp16-wsam-decoupled")
def half(directory: Path, stage: int, name: str) -> dict[str, Any]:
    half, _, method = name.partition("-")
    accelerator = deepspeed.accelerator.get_accelerator()
    accelerator.is_fp16_supported = lambda: True  # torch computes in fp16 here; DeepSpeed asks for faster kernels
    flags = {half: True} if half != "autocast" else {}
    return trained(directory, Net(), config(stage, **HALF[half]), **flags, **SGD, **named(method).arguments())


@case(*STAGES)
def small(directory: Path, stage: int) -> dict[str, Any]:
    arguments = SGD | {"optim": "sam", "sam_rho": 1e-3, "bf16": True}
    return trained(directory, Net(), config(stage, **HALF["bf16"]), **arguments)


FAULTS = {"replay": ("wsam-coupled", "forward", 4), "backward": ("wsam-decoupled", "backward", 3)}
FAULTS |= {"probe": ("xsam", "forward", 7)}


@staged(*FAULTS)
def fault(directory: Path, stage: int, name: str) -> dict[str, Any]:
    """An exception in a pass of the second step; then the weights, what DeepSpeed steps, and a saved model."""
    method, where, number = FAULTS[name]
    network = Net(Saboteur)
    saboteur = network.middle
    arguments = SGD | named(method).arguments() | ({"xsam_refresh": 1} if method == "xsam" else {})
    made = zero_trainer(directory, network, config(stage), **arguments)
    record = Record()
    seen: dict[str, Any] = {"armed": False}
    record.items.append(seen)

    def fail(n: int, gradient: Any = None) -> Any:
        seen = record.items[0]
        if seen["armed"] and n == number:
            seen["moved"] = [not torch.equal(a, b) for a, b in zip(seen["parts"], parts(made), strict=True)]
            raise ZeroDivisionError("on purpose")
        return gradient

    class Arm(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            record.items[0].update(armed=True, parts=[part.clone() for part in parts(made)])
            saboteur.record.forwards = saboteur.record.backwards = 0

    setattr(saboteur, f"on_{where}", fail)
    made.add_callback(Arm())
    try:
        made.train()
    except ZeroDivisionError:
        seen["armed"] = False
    after = weights(made)
    folder = directory / f"fault-{stage}-{name}"
    made.save_model(str(folder))
    torch.distributed.barrier()
    saved = load_file(folder / "model.safetensors")
    return {
        "raised": not seen["armed"],
        "moved": any(seen["moved"]),
        "parts": all(torch.equal(a, b) for a, b in zip(seen["parts"], parts(made), strict=True)),
        "model": torch.equal(after, made.weights[-1]),
        "saved": torch.equal(torch.cat([saved[n].reshape(-1) for n, _ in network.named_parameters()]), after),
        "grads": all(part.grad is None for part in parts_as_they_are(made)),
        "dropped": gradients_are_dropped(made.model_wrapped.optimizer),
        "accelerate": type(made.accelerator.deepspeed_engine_wrapped).__name__,
    }


def gradients_are_dropped(optimizer: Any) -> bool:
    """Whether DeepSpeed holds no gradient of an earlier micro-batch."""
    if hasattr(optimizer, "grad_partitions_flat_buffer"):
        return optimizer.micro_step_id == 0 and not optimizer.grad_partitions_flat_buffer.any()
    held = (*optimizer.averaged_gradients.values(), *optimizer.all_grad_tensors.values())
    return all(gradients is None for gradients in held)


@staged("stock", "ascent", "replay")
def not_finite(directory: Path, stage: int, where: str) -> dict[str, Any]:
    """A gradient that is not finite in one pass of the second step, on rank 1 only."""
    network = Net(Saboteur)
    number = {"stock": 4, "ascent": 6, "replay": 8}[where] if torch.distributed.get_rank() else None
    network.middle.on_backward = lambda n, gradient: gradient * float("inf") if n == number else gradient
    sharp = named("sam").arguments() | {"base_optim": "sgd"}
    chosen = {"optim": "sgd", "library": transformers} if where == "stock" else sharp
    arguments = {"learning_rate": 0.05, "max_grad_norm": MAX_NORM, "max_steps": STEPS}
    return trained(directory, network, config(stage), **arguments, **chosen)


@staged("wsam-decoupled")
def resume(directory: Path, stage: int, method: str) -> dict[str, Any]:
    """From a checkpoint in the middle; on the way an evaluation after every step."""
    folder = directory / f"resume-{stage}"
    saving = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(folder)}
    runs = []
    for checkpoint in (None, str(folder / "checkpoint-2")):
        arguments = SGD | saving | named(method).arguments()
        made = zero_trainer(directory, dropout_and_norm(), config(stage), **arguments)

        class Evaluating(transformers.TrainerCallback):
            def on_step_end(self, *args: Any, made: Any = made, **kwargs: Any) -> None:
                made.evaluate(classification(8, torch.float32))

        made.add_callback(Evaluating())
        made.train(resume_from_checkpoint=checkpoint)
        runs.append(made.weights)
    saved = load_file(folder / "checkpoint-2" / "model.safetensors")
    saved = torch.cat([saved[n].reshape(-1) for n, _ in made.model.named_parameters()])
    return {"through": runs[0], "resumed": runs[1], "saved": saved}


@staged("save", "go_on")
def saving_within(directory: Path, stage: int, name: str) -> dict[str, Any]:
    """A checkpoint made in the middle of a replay, on all ranks together."""
    network = Net(Saboteur)
    folder = directory / f"within-{stage}"
    arguments = SGD | {"output_dir": str(folder)} | named("sam").arguments()
    made = zero_trainer(directory, network, config(stage), **arguments)
    record = Record()

    def save(n: int) -> None:
        if n == 5:  # the second step begins
            record.items.extend(part.clone() for part in parts(made))
        if n == 8 and name == "save":
            made._save_checkpoint(made.model, trial=None)

    network.middle.on_forward = save
    try:
        made.train()
    except RuntimeError as error:
        return {"error": str(error)}
    torch.distributed.barrier()
    if name == "go_on":
        return {"weights": made.weights}
    saved = load_file(folder / "checkpoint-1" / "model.safetensors")
    state = next(folder.glob(f"checkpoint-1/global_step*/*rank_{torch.distributed.get_rank()}_*optim_states.pt"))
    state = torch.load(state, weights_only=False)["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    return {
        "weights": made.weights,
        "saved": torch.cat([saved[n].reshape(-1) for n, _ in network.named_parameters()]),
        "parts": all(
            torch.equal(a[: b.numel()], b) for a, b in zip(record.items, state, strict=True)
        ),  # saved unpadded
    }


@staged("sam", "wsam-decoupled", stages=(3,))
def unused(directory: Path, stage: int, method: str) -> dict[str, Any]:
    """A layer without a gradient in some steps: DeepSpeed's ZeRO-3 alone would use its gradient of an earlier step."""
    items = [
        item | {"branch": torch.tensor(i // 16 % 2)} for i, item in enumerate(classification(80, torch.float32, 5))
    ]
    return trained(directory, Branching(), config(stage), items=items, **SGD, **named(method).arguments())


@case()
def plain_loop(directory: Path) -> str:
    AcceleratorState._reset_state()
    plugin = transformers.TrainingArguments(output_dir=str(directory), use_cpu=True, deepspeed=config(2))
    accelerator = Accelerator(deepspeed_plugin=plugin.deepspeed_plugin)
    accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 4
    model = Net()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return message(lambda: hf_sharpness.SAM(model, optimizer))


@case()
def refused_at_the_start(directory: Path) -> str:
    """A config that the arguments cannot read, as from `accelerate launch`: DeepSpeed's own objects are looked at."""
    arguments = SGD | named("sam").arguments()
    made = zero_trainer(directory, Net(), config(2), **arguments)
    made.accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"] = 0
    return message(made.train)


@case("2-train", "3-train", "3-evaluate")
def used_before(directory: Path, variant: str) -> str:
    """A Trainer that has trained, or evaluated (which transformers refuses before training in ZeRO-1 and 2)."""
    stage, name = int(variant[0]), variant[2:]
    made = zero_trainer(directory, Net(), config(stage), **SGD, **named("sam").arguments())
    made.train() if name == "train" else made.evaluate(classification(8, torch.float32))
    return message(made.train)
