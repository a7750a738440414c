"""The one exception of `hf-sharpness compare`."""

from __future__ import annotations

from ..tasks.errors import RecipeError


class CompareError(RecipeError):
    """A mistake in the question, or a study that cannot go on; the message names what and the remedy."""
