"""The error for what cannot be measured: a line that names what is wrong and what to do."""

from __future__ import annotations


class MeasureError(ValueError):
    """Model, data or settings with which a measurement would not be exact."""
