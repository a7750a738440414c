"""What a step is part of: the progress of the training, what earlier steps kept, random directions."""

from __future__ import annotations

from typing import Any

from .directions import Directions
from .kept import Kept
from .progress import Progress


class Course:
    """Goes on from step to step, and through a checkpoint.

    Args:
        progress: counts the steps.
        kept: what the method keeps.
        directions: draws random vectors.

    Attributes:
        measures: whether the step under way measures how far the weights move (``perturbation_norm`` and the method's
            ``step_ratio``), which reads all of them.
    """

    measures = False

    def __init__(self, progress: Progress, kept: Kept, directions: Directions) -> None:
        self.progress = progress
        self.kept = kept
        self.directions = directions

    def step_made(self) -> None:
        """A step has succeeded."""
        self.progress.steps_made += 1
        self.kept.commit()
        self.directions.draws = 0

    def step_failed(self) -> None:
        """A step was interrupted: the next one begins where it began."""
        self.kept.drop()
        self.directions.draws = 0

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and the tensors that the method keeps (this rank's)."""
        state: dict[str, Any] = {"steps_made": self.progress.steps_made, "seed": self.directions.seed}
        return state | ({"kept": self.kept.state_dict()} if self.kept.names else {})

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Take over a saved state; all ranks call this together.

        Returns:
            Why the tensors could not be taken over, so that they start anew; None if they were.
        """
        self.progress.steps_made = state.get("steps_made", 0)
        self.directions.seed = state.get("seed")
        return self.kept.load_state_dict(state.get("kept"))
