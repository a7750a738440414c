"""What a mixin for Trainers derives from: for a type checker the Trainer that it is mixed into, else nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

if TYPE_CHECKING:

    class MixinBase(transformers.Trainer):
        """transformers' own, with attributes that its annotations say less of than is known where the mixin is."""

        args: Any
        model: Any
        optimizer: Any
        accelerator: Any
        state: Any

else:
    MixinBase = object
