"""Two gloo ranks, the Trainer in DDP: the methods of examples/methods/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import torch
from cases import EXAMPLES
from cases_trainer import LLAMA, WRAPPED, load, texts, trainer
from launch import case
from models import Net, classification, collate
from own_methods import Everything
from specs_of_modes import BASE, MAX_NORM, without_decay
from steps_on_ranks import whole

from hf_sharpness.loop import SharpnessAware
from hf_sharpness.methods import register

EXAMPLE = {str(example): example for example in EXAMPLES}
for example in EXAMPLES:
    register(example.method_class)
ARGUMENTS = without_decay(BASE).arguments() | {
    "max_grad_norm": MAX_NORM,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
}


def run(directory: Path, name: str, resume: Path | None = None, **arguments: Any) -> Any:
    items = classification(80, seed=5)
    made = trainer(directory, Net().double(), items, **ARGUMENTS | EXAMPLE[name].arguments | arguments)
    made.train(resume_from_checkpoint=resume and str(resume))
    return made


@case(*EXAMPLE)
def trained(directory: Path, name: str) -> list[torch.Tensor]:
    return run(directory, name).weights


@case("friendly_sam", "looksam")
def resumed(directory: Path, name: str) -> dict[str, Any]:
    """From the second of five steps; every rank has a file of its own."""
    folder = directory / f"resumed-{name}"
    whole = run(directory, name, output_dir=str(folder), save_strategy="steps", save_steps=2)
    checkpoint = folder / "checkpoint-2"
    rest = run(directory, name, resume=checkpoint)
    files = sorted(file.name for file in checkpoint.glob("sharpness_state*"))
    return {"whole": whole.weights[2:], "rest": rest.weights, "files": files, "checkpoint": str(checkpoint)}


@case(*[f"{wrapper}-{name}" for wrapper in WRAPPED for name in EXAMPLE], usually="-(ddp|fsdp2)-(gsam|looksam)")
def llama_by(directory: Path, name: str) -> list[torch.Tensor]:
    """Sharded by transformers at load time."""
    wrapper, _, name = name.partition("-")
    arguments = LLAMA | EXAMPLE[name].arguments
    made = trainer(directory, load(directory, **WRAPPED[wrapper]), texts(), **arguments)
    made.train()
    return made.weights


@case("1", "2")
def tensor_parallel(directory: Path, size: str) -> list[torch.Tensor]:
    """All ranks see the same batch; some weights are whole on each of them."""
    model = load(directory, **({"tp_size": 2} if size == "2" else {}))
    optimizer = BASE.torch(model.parameters())
    method = SharpnessAware(Everything(), model, optimizer, total_steps=4)
    weights = []
    for start in range(0, 16, 4):
        batch = collate(texts()[start : start + 4])

        def closure(batch: Any = batch) -> torch.Tensor:
            loss = model(**batch).loss
            loss.backward()
            return loss.detach()

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(whole(model))
    return weights


@case("friendly_sam")
def lost(directory: Path, name: str) -> dict[str, Any]:
    """The file of one rank is missing: both start anew."""
    folder = directory / f"lost-{name}"
    run(directory, name, output_dir=str(folder), save_strategy="steps", save_steps=2)
    checkpoint = folder / "checkpoint-2"
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 1:
        (checkpoint / "sharpness_state_1.pt").unlink()
    torch.distributed.barrier()
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rest = run(directory, name, resume=checkpoint)
    said = [str(w.message) for w in caught if "starts anew" in str(w.message)]
    return {"weights": rest.weights, "said": said}
