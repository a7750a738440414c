"""Which base optimizer a Trainer makes: that of ``base_optim`` where ``optim`` is a sharpness-aware method."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import transformers
from transformers.training_args import OptimizerNames


class BaseChoice:
    """``Trainer.get_optimizer_cls_and_kwargs``, of ``base_optim``.

    transformers' is static. Another library's class below may have one that is not, which also looks up what the loss
    trains (sentence-transformers), or a user's may name another optimizer: of an instance theirs is asked, as
    ``super()`` would.

    Args:
        stock: transformers' own Trainer.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, instance: Any, kind: type | None = None) -> Any:
        theirs = self.stock if instance is None else super(self.owner, instance)
        return functools.partial(chosen, getattr(theirs, self.name))


def chosen(theirs: Any, args: Any, model: Any = None) -> tuple[Any, Any]:
    """The optimizer's class and its arguments.

    Args:
        theirs: says so of transformers' own optimizers.
        args: the training arguments.
        model: for optimizers that are made for one.
    """
    if not getattr(args, "uses_sharpness", False):
        return theirs(args, model)
    args, base_optim = copy.copy(args), args.base_optim
    args.optim = OptimizerNames(base_optim)
    made, options = theirs(args, model)
    if (
        base_optim == "sgd"
        and made is torch.optim.SGD
        and "momentum" in (args.optim_args or "")
        and "momentum" not in options
    ):
        raise ValueError(
            f"optim_args={args.optim_args!r} would have no effect: transformers {transformers.__version__} "
            "does not hand it to sgd. Use a newer transformers, or pass the Trainer "
            "optimizer_cls_and_kwargs=(torch.optim.SGD, {...})"
        )
    return made, options
