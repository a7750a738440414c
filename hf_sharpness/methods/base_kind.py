"""What a method's defaults depend on in the optimizer that it is put around."""

from typing import Literal

BaseKind = Literal["adaptive", "momentum", "plain"]
"""``adaptive`` rescales every coordinate of its step (Adam and the like, everything but SGD), ``momentum`` is SGD with
momentum, ``plain`` SGD without."""
