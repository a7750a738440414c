"""What a model card says about sharpness-aware training: method, hyper-parameters, measured sharpness and papers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.repocard import metadata_load, metadata_save

from .. import __version__
from ..engine.optimizers import base_optimizer, kind_of
from ..methods import Method, hyperparameters
from ..methods.options import PREFIX
from .callback import SharpnessCallback

log = logging.getLogger(__name__)

TAG = "sharpness-aware-minimization"
_BEGIN, _END = f"<!-- {TAG}: begin -->", f"<!-- {TAG}: end -->"


def tags(args: Any) -> list[str]:
    """The tags of a model trained with these arguments."""
    return [TAG, args.optim]


def begin(card: Path, model: Any) -> None:
    """Write the heading of a card where transformers writes none: for a model without a `config`, which it asks for."""
    name = type(model).__name__
    card.write_text(f"# {card.resolve().parent.name}\n\nA `{name}`, trained with the Trainer.\n", encoding="utf-8")


def complete(
    card: Path,
    args: Any,
    optimizer: torch.optim.Optimizer | None,
    log_history: Sequence[dict[str, Any]],
    names: Sequence[str],
    repo: str | None = None,
    steps: tuple[int, int] | None = None,
) -> None:
    """Add tags and a section to the model card that a Trainer wrote. Done again, it replaces them.

    Args:
        card: the README.md; nothing happens where there is none.
        args: the training arguments.
        optimizer: the base optimizer, as far as there is one already.
        log_history: what the Trainer logged.
        names: the logged series to report, from their last entry, beside those of the method.
        repo: the model's name on the Hub, as far as it has one. Default None: as the arguments say.
        steps: how many optimizer steps were sharpness-aware, and how many there were. Default None: not known.
    """
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    text = re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n\n?", "", text, flags=re.DOTALL)
    text = text.replace(f"Use {args.optim} and the args are:\n", _optimizer(args))
    # What transformers writes of a model that was made from a configuration.
    text = text.replace("is a fine-tuned version of [](https://huggingface.co/) on", "was trained on")
    method = args.method().resolved(args.base_kind() if optimizer is None else kind_of(base_optimizer(optimizer)))
    repo = repo or getattr(args, "hub_model_id", None) or "FOLDER"
    section = _section(args, method, log_history, (*names, *method.metrics), repo, steps)
    head, heading, tail = text.partition("### Framework versions")
    text = f"{head}{section}\n\n{heading}{tail}" if heading else f"{text.rstrip()}\n\n{section}\n"
    card.write_text(text, encoding="utf-8")

    metadata = metadata_load(card) or {}
    earlier = metadata.get("tags") or []
    earlier = [earlier] if isinstance(earlier, str) else earlier
    metadata["tags"] = list(dict.fromkeys([*earlier, *tags(args)]))
    metadata_save(card, metadata)


def leave(trainer: Any, folder: str | None, _internal_call: bool = False) -> None:
    """After `save_model` with these arguments: a card for a sharpness-aware run's model, where there is none."""
    folder = folder or trainer.args.output_dir
    if not trainer.uses_sharpness or _internal_call or not trainer.args.should_save:
        return  # _internal_call: a checkpoint, or an upload, which makes a card of its own
    if Path(folder, "README.md").exists():
        return
    arguments, output_dir = trainer.args, trainer.args.output_dir
    arguments.output_dir = folder  # where `create_model_card` writes to
    try:
        trainer.create_model_card()
    except Exception as error:  # the model has been saved, and that counts
        log.warning("no model card was written into %s: %s", folder, error)
    finally:
        arguments.output_dir = output_dir


def _optimizer(args: Any) -> str:
    """transformers' line on the optimizer, which knows a base by its name only."""
    adam = f" with betas=({args.adam_beta1},{args.adam_beta2}) and epsilon={args.adam_epsilon}"
    return f"Use {args.optim} around {args.base_optim}{adam if 'adam' in args.base_optim else ''} and optimizer_args="


def steps_of(trainer: Any) -> tuple[int, int] | None:
    """How many optimizer steps of its training were sharpness-aware, and how many there were; None if not known."""
    callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, SharpnessCallback)]
    sharp = callbacks[-1].sharp_steps if callbacks else None
    return None if sharp is None or not trainer.state.global_step else (sharp, trainer.state.global_step)


def _section(
    args: Any,
    method: Method,
    log_history: Sequence[dict[str, Any]],
    names: Sequence[str],
    repo: str,
    steps: tuple[int, int] | None,
) -> str:
    links = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in method.cited)
    options = args.step_options()
    settings = {h.argument: getattr(method, name) for name, h in hyperparameters(type(method)).items()}
    settings |= {h.argument: getattr(options, name) for name, h in hyperparameters(type(options), PREFIX).items()}
    lines = [
        f"- base_optim: {args.base_optim}",
        *(f"- {argument}: {value}" for argument, value in settings.items() if value is not None),
    ]
    which = "The" if steps is None or steps[0] == steps[1] else f"{steps[0]} of {steps[1]} optimizer"
    bibtex = "\n\n".join(entry or f"% arXiv {paper}" for paper, entry in method.cited.items())
    logged = next((entry for entry in reversed(log_history) if "sharpness" in entry), None)
    if logged is None:
        measured = ["No sharpness was logged."]
    else:
        measured = [
            f"Measured at step {logged.get('step')}, the last logged (means since the log before):",
            "",
            *(f"- {name}: {logged[name]:.6g}" for name in ("loss", *names) if name in logged),
        ]
    return "\n".join(
        [
            _BEGIN,
            f"### Sharpness-aware minimization: {method.title}",
            "",
            f"{which} steps were sharpness-aware{links and f' ({links})'}, by hf_sharpness {__version__}, with these "
            "hyper-parameters:",
            "",
            *lines,
            "",
            *measured,
            "",
            f"`sharpness_config.json` holds the arguments: `--sharpness_config {repo}` trains with them.",
            "",
            *(["```bibtex", bibtex, "```"] if bibtex else []),
            _END,
        ]
    )
