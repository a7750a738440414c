"""What the tests of closures with habits share."""

from __future__ import annotations

from collections.abc import Callable

from models import classification, collate
from torch import Tensor

BATCH = collate(classification(16))
EXACT = {"rtol": 1e-10, "atol": 1e-11}
Closure = Callable[[], Tensor]
