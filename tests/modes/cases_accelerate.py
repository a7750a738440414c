"""Two gloo ranks through Accelerate's own FSDP2, as `accelerate launch` sets it up.

Accelerate offers FSDP2 on accelerators only. Nothing in its code needs one: told that these ranks are not CPUs, it
wraps, saves and loads on them as anywhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import accelerate
from accelerate.utils import DistributedType

os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
os.environ |= {"FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"}
stock_init = accelerate.PartialState.__init__


def init(self: accelerate.PartialState, *args: Any, **kwargs: Any) -> None:
    stock_init(self, *args, **kwargs)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


accelerate.PartialState.__init__ = init

# These make an accelerator state when they are imported.
import cases_trainer  # noqa: E402
import torch  # noqa: E402
from cases_trainer import LLAMA, load, texts, trained, trainer  # noqa: E402
from launch import CASES, case  # noqa: E402
from reference import flat  # noqa: E402
from specs_of_modes import METHODS, named  # noqa: E402
from torch.distributed.fsdp import FSDPModule  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

CASES.pop(cases_trainer.__name__)


@case(*[spec.name for spec in METHODS])
def accelerate_fsdp2(directory: Path, name: str) -> dict[str, Any]:
    """The run, and its second half from a sharded checkpoint."""
    os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
    saving = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(directory / name)}
    arguments = LLAMA | named(name).arguments() | saving
    run = trainer(directory, load(directory), texts(), **arguments)
    run.train()
    assert isinstance(run.model_wrapped, FSDPModule)
    rest = trainer(directory, load(directory), texts(), **arguments | {"save_strategy": "no"})
    rest.train(resume_from_checkpoint=str(directory / name / "checkpoint-2"))
    return {"weights": run.weights, "log": run.state.log_history[:-1], "resumed": rest.weights}


@case("sam", "wsam-decoupled")
def full_checkpoint(directory: Path, name: str) -> dict[str, Any]:
    """The weights after every step, and those of a full checkpoint, loaded as any other model is."""
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    folder = directory / f"full-{name}"
    saving = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True, "output_dir": str(folder)}
    result = trained(directory, load(directory), texts(), **LLAMA | named(name).arguments() | saving)
    torch.distributed.barrier()
    return result | {"saved": flat(LlamaForCausalLM.from_pretrained(folder / "checkpoint-2"))}
