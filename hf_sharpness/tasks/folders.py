"""The folder a run writes into: its default name, and that no finished run is lost in it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from .errors import RecipeError

FINISHED = "test_results.json"
"""Written last: a folder that holds it holds a finished run."""
_OF_A_RUN = (FINISHED, "train_results.json", "eval_results.json", "all_results.json", "trainer_state.json")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")


def default_folder(name: str, arguments: Any) -> Path:
    """Return `outputs/<recipe>-<method>-seed<seed>`.

    Args:
        name: The recipe's.
        arguments: The training arguments.
    """
    method = str(getattr(arguments.optim, "value", arguments.optim))
    if arguments.uses_sharpness and arguments.sam_adaptive:
        method += "-adaptive"
    return Path("outputs") / f"{name}-{method}-seed{arguments.seed}"


def check_free(folder: Path, checkpoint: str | None) -> None:
    """Make sure that training into `folder` overwrites no other run.

    Args:
        folder: Where the run is to write.
        checkpoint: The checkpoint that it goes on from, if any. One of this folder continues its run.

    Raises:
        RecipeError: The folder holds a run.
    """
    if checkpoint is not None and Path(checkpoint).resolve().parent == folder.resolve():
        return
    if (folder / FINISHED).exists():
        raise RecipeError(
            f"'{folder}' holds a finished run: give another --output_dir (or --seed), or --overwrite_output_dir to "
            "replace it"
        )
    if _checkpoints(folder):
        raise RecipeError(
            f"'{folder}' holds the checkpoints of a run that did not finish: go on with it by "
            "--resume_from_checkpoint true, or start anew by --overwrite_output_dir, or give another --output_dir"
        )
    if _files(folder):
        raise RecipeError(
            f"'{folder}' holds a model ({_files(folder)[0].name}): give another --output_dir, or "
            "--overwrite_output_dir to replace it"
        )


def clear(folder: Path, checkpoints: bool) -> None:
    """Remove the results and weights of an earlier run, and nothing else, so that none is taken for the new one's.

    Args:
        folder: The run's.
        checkpoints: Whether to remove its checkpoints too.
    """
    for checkpoint in _checkpoints(folder) if checkpoints else ():
        if checkpoint.is_symlink():
            checkpoint.unlink()
        else:
            shutil.rmtree(checkpoint)
    for file in _files(folder):
        file.unlink()


def find_checkpoint(arguments: Any) -> str | None:
    """Return the checkpoint folder `--resume_from_checkpoint PATH|true` means, or None.

    Raises:
        RecipeError: The folder is no checkpoint, or `true` was given and the output folder holds none.
    """
    from transformers.trainer_utils import get_last_checkpoint

    wanted = arguments.resume_from_checkpoint
    if wanted is None or wanted.lower() == "false":
        return None
    if wanted.lower() == "true":
        folder = Path(arguments.output_dir)
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise RecipeError(
                f"--resume_from_checkpoint true: '{folder}' holds no checkpoint; leave the flag out to start anew"
            )
        return last
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise RecipeError(f"--resume_from_checkpoint: '{wanted}' is no checkpoint folder (no trainer_state.json in it)")
    return wanted


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*")
    return [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]


def _files(folder: Path) -> list[Path]:
    return [path for name in (*_WEIGHTS, *_OF_A_RUN) for path in sorted(folder.glob(name)) if path.is_file()]
