"""What a range test of rho has to know of a method: which step it makes of the two gradients, and how far it looks.

    class Mine(Method):
        range_forms = (RangeForm("MINE", weight=2.0),)

The test measures the gradient at the weights and rho up the slope, once for all methods; a form says how to read it.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RangeForm:
    """A method as the rules of ``hf-sharpness rho`` see it.

    Args:
        name: as in tables; what stands before its first comma is its short name.
        weight: how much of `g_s - g` it adds to the plain gradient; 1 is SAM.
        reach: how many times rho away it looks at the loss.
    """

    name: str
    weight: float = 1.0
    reach: float = 1.0
