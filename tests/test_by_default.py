"""Which variants of a test run by default."""

from __future__ import annotations

from by_default import stand_ins


def test_two_methods_stand_for_all() -> None:
    names = ["sam-1", "sam-k3-1", "wsam-coupled-1", "wsam-decoupled-1", "wsam-decoupled-k3-1", "xsam-1", "xsam-k3-1"]
    assert stand_ins(names) == {"wsam-decoupled-1", "xsam-k3-1"}
    assert stand_ins(["sam-2", "wsam-decoupled-2", "wsam-coupled-2"]) == {"sam-2", "wsam-decoupled-2"}


def test_what_differs_otherwise_stays() -> None:
    names = ["sam-micro-batch", "sam", "sam_scope", "x-sam-y", "asam", "3", "wsam-coupled-file"]
    assert stand_ins(names) == set(names)
    assert stand_ins(["sam-a", "wsam-decoupled-b"]) == {"sam-a", "wsam-decoupled-b"}
