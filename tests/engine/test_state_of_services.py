"""Objects that hold locks: left alone, and told of where passes change them."""

from __future__ import annotations

import threading
import warnings

import pytest
from test_state_of_records import trained

from hf_sharpness import SAM


class Meter:
    """Counts what it is told, from any thread; a list and a dict of its own are written to."""

    def __init__(self) -> None:
        self.lock, self.lines, self.totals = threading.Lock(), [0], {"seen": 0}

    def add(self) -> None:
        with self.lock:
            self.lines.append(len(self.lines))


class Counting(Meter):
    def add(self) -> None:
        self.count = getattr(self, "count", 0) + 1


class Tallying(Meter):
    def add(self) -> None:
        self.totals["seen"] += 1


class Memo(Meter):
    """Computes once, as a further pass does not do again."""

    def add(self) -> None:
        self.totals.setdefault("memo", 1)


class Sampled(Meter):
    """Has a thread that writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.Thread(target=print)

    def add(self) -> None:
        self.lines.append(len(self.lines))


@pytest.mark.parametrize("kind", [Meter, Counting, Tallying])
def test_what_is_left_alone_for_its_lock_is_told(kind: type[Meter]) -> None:
    meter = kind()
    with pytest.warns(UserWarning, match=rf"meter \(a {kind.__name__}\) holds a lock.*left alone") as told:
        trained(lambda model: meter.add() or 0.0, SAM)
    assert len(told) == 1


@pytest.mark.parametrize("kind", [Memo, Sampled])
def test_an_object_with_a_lock_that_further_passes_leave_alone_is_not_told_of(kind: type[Meter]) -> None:
    meter = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(lambda model: meter.add() or 0.0, SAM)
