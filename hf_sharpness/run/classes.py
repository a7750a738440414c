"""This package's classes under transformers' names, for scripts and libraries that know nothing of it."""

from __future__ import annotations

import importlib
import multiprocessing.spawn
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import environment, settings

_REPLACED = {
    "transformers.training_args": ("TrainingArguments", "hf_sharpness.arguments"),
    "transformers.training_args_seq2seq": ("Seq2SeqTrainingArguments", "hf_sharpness.arguments"),
    "transformers.trainer": ("Trainer", "hf_sharpness.trainer"),
    "transformers.trainer_seq2seq": ("Seq2SeqTrainer", "hf_sharpness.trainer"),
}
"""Module of transformers -> the class it defines, and where the class of the same name is that takes its place."""

_WATCHED = {"transformers", *_REPLACED}
_PACKAGE = __name__.partition(".")[0] + "."


def install() -> None:
    """From now on, whoever imports one of transformers' Trainers or TrainingArguments gets this package's.

    transformers is not imported here: the classes are replaced as soon as somebody imports them, so that environment
    variables and paths which a script sets before that count as ever. transformers' own modules that hold the names see
    the replacement too; libraries that imported them before ``install`` do not. Processes that multiprocessing spawns
    from this one install as well. Repeating it is harmless.
    """
    if _watch in sys.meta_path:
        return
    sys.meta_path.insert(0, _watch)
    spawn: Any = multiprocessing.spawn
    spawn.get_preparation_data = _installing_in_children(spawn.get_preparation_data)
    _replace()


class _Watch:
    """An import hook: once the outermost import of a watched module is done, puts the classes in place.

    Not before: transformers' classes derive from each other, and this package's from them; and whichever module of this
    package is imported first, all that it needs is there before the classes are asked for.

    Attributes:
        depth: how many imports of watched modules are under way, each within the one before.
        packages: every module that has been ``transformers``. While it imports its submodules it makes itself anew,
            and a script may go on using the first.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.packages: list[ModuleType | None] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _WATCHED and not name.startswith(_PACKAGE):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            loader.exec_module = self._replacing_after(loader.exec_module)
        return spec

    def _replacing_after(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
                self.packages.append(sys.modules.get("transformers"))
            if self.depth == 0:
                _replace()

        return exec_module


_watch = _Watch()


def _replace() -> None:
    for home, (name, our_home) in _REPLACED.items():
        stock = getattr(sys.modules.get(home), name, None)
        if stock is None or stock.__module__ == our_home:
            continue
        ours = getattr(importlib.import_module(our_home), name)
        for theirs, value in vars(sys.modules[home]).items():
            # Axolotl and others rewrite methods from their source, with the names they find in the class's __module__.
            vars(sys.modules[our_home]).setdefault(theirs, value)
        for module in [*_watch.packages, *sys.modules.values()]:
            module_name = getattr(module, "__name__", None) or ""
            if module_name.partition(".")[0] == "transformers" and vars(module).get(name) is stock:
                setattr(module, name, ours)
        if name == "TrainingArguments":
            settings.install(ours)
        elif name == "Trainer" and environment.REPORTS in os.environ:
            from .counting import StepReport

            callbacks = sys.modules[home].DEFAULT_CALLBACKS
            if StepReport not in callbacks:  # the import of ours has come by here too
                callbacks.append(StepReport)


class _Install:
    """Unpickled, it has installed, where this package can be imported at all."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (
            "import contextlib\n"
            "with contextlib.suppress(ImportError):\n"
            "    from hf_sharpness.run.classes import install\n"
            "    install()",
        )


def _installing_in_children(get_preparation_data: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    def preparation_data(name: str) -> dict[str, Any]:
        # A spawned process unpickles this before it imports the main module.
        return {**get_preparation_data(name), "hf_sharpness": _Install()}

    return preparation_data
