"""What `hf-sharpness train` shows: a header, the log in columns, and a summary last.

On a terminal every log entry is a line of a table. Into a pipe or a file go transformers' dictionaries, one a line, as
programs expect them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from .errors import printable

_FIRST = (("step", "step", "d"), ("epoch", "epoch", ".2f"))
_TRAINING = (("loss", "loss", ".4f"), ("sharpness", "sharpness", ".4f"), ("learning_rate", "lr", ".2e"))


def quiet() -> None:
    """Silence what would stand between the lines of a run: a bar for every saved file, a warning at every epoch."""
    transformers_logging.disable_progress_bar()
    # Trainer pins memory by default; on a machine without an accelerator torch would say at every epoch that it cannot.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")


class Columns(ProgressCallback):
    """The log as a table, above transformers' bar.

    Args:
        metrics: Names of the evaluation metrics, without `eval_`.
        sharpness: Whether sharpness is logged.
        bar: Whether to show the bar.
    """

    def __init__(self, metrics: Sequence[str], sharpness: bool, bar: bool) -> None:
        super().__init__()
        training = [column for column in _TRAINING if sharpness or column[0] != "sharpness"]
        evaluation = [(f"eval_{name}", f"eval {name.replace('_', ' ')}", ".4f") for name in ("loss", *metrics)]
        self.columns = [*_FIRST, *training, *evaluation]
        self.bar = bar
        self.has_begun = self.is_over = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self.bar:
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
            if self.prediction_bar is not None:
                self.prediction_bar.leave = False

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.is_over = True
        if self.training_bar is not None:
            self.training_bar.leave = False
            super().on_train_end(args, state, control, **kwargs)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        # What comes after the training stands in the summary.
        if self.is_over or not state.is_world_process_zero or not {"loss", "eval_loss"} & set(logs or {}):
            return
        values = {**(logs or {}), "step": state.global_step}
        if not self.has_begun:
            self._write("\n" + "  ".join(f"{title:>{self._width(title)}}" for _, title, _ in self.columns))
            self.has_begun = True
        cells = [
            (f"{values[key]:{form}}" if key in values else "").rjust(self._width(title))
            for key, title, form in self.columns
        ]
        self._write("  ".join(cells).rstrip())

    @staticmethod
    def _width(title: str) -> int:
        return max(len(title), 8)

    def _write(self, line: str) -> None:
        if self.training_bar is None:
            print(line, flush=True)
        else:
            self.training_bar.write(line)


def is_terminal() -> bool:
    """Whether what is printed is read by somebody as it comes."""
    return sys.stdout.isatty()


def block(title: str, rows: dict[str, str]) -> str:
    """A title and indented rows under it, their names in a column."""
    width = max(len(name) for name in rows)
    return "\n".join(map(printable, [title, *(f"  {name:<{width}}  {text}" for name, text in rows.items())]))
