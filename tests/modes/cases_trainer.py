"""Two gloo ranks through the Trainer: DDP, FSDP2 and HSDP sharded by transformers at load time, tensor parallel."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from launch import case
from models import Batch, Net, TinyLM, classification, collate
from oldest import options_for_momentum
from reference import flat
from specs_of_modes import BASE, MAX_NORM, METHODS, SCOPED, named, token_items, without_decay
from steps_on_ranks import collectives, message, rank, whole
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

import hf_sharpness

PartialState(cpu=True)
transformers.trainer.PrinterCallback = transformers.TrainerCallback
SGD = without_decay(BASE).arguments() | {"max_grad_norm": MAX_NORM}


def trainer(
    directory: Path,
    model: nn.Module,
    items: list[Batch],
    library: Any = hf_sharpness,
    collator: Any = collate,
    **arguments: Any,
) -> Any:
    class Recording(library.Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Recorder(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            made.weights.append(made.weights_of(made))

    defaults = {
        "output_dir": str(directory / "run"),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "max_steps": 5,
    }
    args = library.TrainingArguments(**(defaults | arguments))
    options = options_for_momentum(arguments)
    made = Recording(
        model=model, args=args, train_dataset=items, data_collator=collator, callbacks=[Recorder()], **options
    )
    made.weights, made.weights_of = [], lambda made: whole(made.model)
    return made


def trained(*args: Any, **kwargs: Any) -> dict[str, Any]:
    made = trainer(*args, **kwargs)
    made.train()
    return {"weights": made.weights, "log": made.state.log_history[:-1]}


@case(*[spec.name for spec in SCOPED])
def ddp(directory: Path, name: str) -> dict[str, Any]:
    """The same batches as `rank_batches` gives each rank."""
    items = classification(80, seed=5)
    arguments = named(name).arguments() | SGD
    return trained(directory, Net().double(), items, gradient_accumulation_steps=2, **arguments)


@case(*[spec.name for spec in METHODS])
def tokens(directory: Path, name: str) -> dict[str, Any]:
    """Numbers of target tokens that differ between micro-batches and ranks."""
    arguments = named(name).arguments() | SGD
    return trained(directory, TinyLM().double(), token_items(), gradient_accumulation_steps=2, **arguments)


STOCK_AT_RHO_0 = ["stock", "sam", "wsam-decoupled"]


@case(*STOCK_AT_RHO_0)
def rho_0(directory: Path, name: str) -> dict[str, Any]:
    """Dropout and BatchNorm, whose buffers DDP broadcasts."""
    model = Net(lambda: nn.Sequential(nn.Dropout(0.4), nn.BatchNorm1d(8)))
    items = classification(80, torch.float32)
    if name == "stock":
        result = trained(directory, model, items, transformers, gradient_accumulation_steps=2)
    else:
        arguments = named(name).arguments() | {"sam_rho": 0.0}
        result = trained(directory, model, items, gradient_accumulation_steps=2, **arguments)
    return result | {"buffers": [buffer.clone() for buffer in model.buffers()]}


@case("stock", "device-sam", "device-wsam-coupled")
def trainer_collectives(directory: Path, name: str) -> int:
    """How many collectives a run makes that logs nothing, but for its summary."""
    quiet = {"logging_strategy": "no", "gradient_accumulation_steps": 2, "max_steps": 3}
    before = collectives()
    if name == "stock":
        trained(directory, Net().double(), classification(80), transformers, **quiet)
        return collectives() - before
    trained(directory, Net().double(), classification(80), **named(name).arguments(), sam_check="off", **quiet)
    return collectives() - before - 1  # once at the end of a run: the summary's means over ranks (training/summary.py)


@case(*[spec.name for spec in METHODS])
def bf16(directory: Path, name: str) -> torch.Tensor:
    arguments = named(name).arguments() | {"bf16": True, "base_optim": "adamw_torch", "max_steps": 8}
    return trained(directory, Net(), classification(80, torch.float32), **arguments)["weights"][-1]


@case("sam", "wsam-coupled", "xsam")
def bf16_weights(directory: Path, name: str) -> torch.Tensor:
    arguments = named(name).arguments() | {"base_optim": "adamw_torch", "max_steps": 8, "learning_rate": 0.01}
    return trained(directory, Net().bfloat16(), classification(80, torch.bfloat16), **arguments)["weights"][-1]


# Sharded at load time by transformers.


@cache
def llama(directory: Path) -> Path:
    """A tiny Llama, saved once."""
    folder = directory / "llama"
    if rank() == 0:
        transformers.set_seed(0)
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
        LlamaForCausalLM(LlamaConfig(vocab_size=64, **size, **heads)).double().save_pretrained(folder)
    torch.distributed.barrier()
    return folder


def texts() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 64, (8,), generator=generator) for _ in range(64)]
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def load(directory: Path, **config: int) -> nn.Module:
    folder = llama(directory)
    if not config:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    distributed = DistributedConfig(**config)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, distributed_config=distributed)


LLAMA = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "collator": None} | SGD
WRAPPED = {"ddp": {}, "fsdp2": {"fsdp_size": 2}, "hsdp": {"fsdp_size": 1, "dp_replicate_size": 2}}


@case(
    *[f"{wrapper}-{spec.name}" for wrapper in WRAPPED for spec in METHODS],
    usually="-(ddp|fsdp2)-(wsam-decoupled|xsam)|hsdp-xsam",
)
def llama_by(directory: Path, name: str) -> dict[str, Any]:
    """For FSDP2 also the weights of a checkpoint made on the way, loaded as any other model is."""
    wrapper, _, method = name.partition("-")
    saving = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True, "output_dir": str(directory / name)}
    arguments = LLAMA | named(method).arguments() | (saving if wrapper == "fsdp2" else {})
    result = trained(directory, load(directory, **WRAPPED[wrapper]), texts(), **arguments)
    if wrapper == "fsdp2":
        torch.distributed.barrier()
        result["saved"] = flat(LlamaForCausalLM.from_pretrained(directory / name / "checkpoint-2"))
    return result


@case("device", "micro_batch")
def fsdp2_trainer_refused(directory: Path, scope: str) -> str:
    model = load(directory, fsdp_size=2)
    return message(lambda: trained(directory, model, texts(), **(LLAMA | {"optim": "sam", "sam_scope": scope})))


@case(*[f"{size}-{spec.name}" for size in (1, 2) for spec in METHODS])
def tensor_parallel(directory: Path, name: str) -> list[torch.Tensor]:
    """Accelerate refuses tensor parallelism on CPUs, so a plain loop: all ranks see the same batch."""
    size, _, name = name.partition("-")
    model = load(directory, **({"tp_size": 2} if size == "2" else {}))
    optimizer = BASE.torch(model.parameters())
    method = named(name).ours(model, optimizer)
    weights = []
    for start in range(0, 16, 4):
        batch = collate(texts()[start : start + 4])

        def closure(batch: Batch = batch) -> torch.Tensor:
            loss = model(**batch).loss
            loss.backward()
            return loss.detach()

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(whole(model))
    return weights
