"""What is said of a run before it begins and when it is over."""

from __future__ import annotations

from ..training.card import steps_of
from .metrics import scores
from .prepare import PreparedRun
from .terminal import block


def header(run: PreparedRun, one_thread: bool) -> str:
    """What is about to run.

    Args:
        run: The run.
        one_thread: Whether it was given one thread because its model is small.
    """
    data, recipe = run.data, run.recipe
    rows = {
        "data": f"{recipe.data.source}: {len(data.train):,} training, {len(data.eval):,} evaluation, "
        f"{len(data.test):,} test examples",
        "model": f"{run.task.model.num_parameters():,} parameters",
        "folder": str(run.output),
    }
    if one_thread:
        rows["threads"] = "1, as the model is small; OMP_NUM_THREADS sets another number"
    if run.checkpoint is not None:
        rows["resumes"] = run.checkpoint
    return block(run.title, rows)


def summary(run: PreparedRun, metrics: dict[str, dict[str, float]], processor_time: float) -> str:
    """What a finished run has reached, what it has cost, and where its files are.

    Args:
        run: The run.
        metrics: By split: train, eval, test.
        processor_time: Processor time of the training in seconds.
    """
    steps = run.trainer.state.global_step
    shown = {"evaluation": scores(metrics["eval"], "eval"), "test": scores(metrics["test"], "test")}
    seconds = metrics["train"]["train_runtime"]
    rows = {
        **{split: "   ".join(f"{name} {value:.4f}" for name, value in shown[split].items()) for split in shown},
        "cost": f"{steps:,} step{'' if steps == 1 else 's'} of {_passes(run)} in {seconds:.1f} s "
        f"({processor_time:.1f} s of processor time)",
        "files": f"{run.output}: model, README.md (its card), curves.png, recipe.yaml, test_results.json",
    }
    return "\n" + block(run.title, rows)


def _passes(run: PreparedRun) -> str:
    """How many passes a step made, in words."""
    method, counted = run.arguments.method(), steps_of(run.trainer)
    sharp, steps = counted or (1, 1)
    if method is None or method.is_plain or not sharp:
        return "1 pass"
    passes = "1 pass or more"
    if not method.decides_replays:
        passes = f"{1 + method.replays} passes" if method.replays else "1 pass"
    return passes if sharp == steps else f"1 pass, {sharp:,} of them of {passes}"
