"""Whatever a shared file holds, it sets sharpness arguments or gives one clear error: nothing else, and soon."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_sharpness import SharpnessArguments, TrainingArguments
from hf_sharpness.sharing.config import parse_config
from hf_sharpness.sharpness_arguments.definitions import shared_arguments
from hf_sharpness.tasks.shared import (
    private_training_keys,
)

FEW = settings(max_examples=200, deadline=5000, derandomize=True, database=None)
MANY = settings(max_examples=5000, deadline=5000, database=None, suppress_health_check=[HealthCheck.too_slow])
EFFORTS = pytest.mark.parametrize("effort", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])

VALID = json.dumps({"format_version": 1, "optim": "wsam", "sam_rho": 0.1, "xsam_refresh": "epoch"}).encode()
SHARED = shared_arguments()
WORDS = ("sam", "wsam", "xsam", "sgd", "adamw_torch", "global", "device", "auto", "coupled", "decoupled", "epoch", "5")
PRIVATE = tuple(private_training_keys(TrainingArguments))
"""Arguments of a training run that no shared file may set."""

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**310)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=200)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
keys = (
    st.sampled_from(SHARED) | st.sampled_from(PRIVATE) | st.sampled_from(("paper", "__class__")) | st.text(max_size=20)
)
configs = st.builds(
    lambda entries, version: entries | version, st.dictionaries(keys, anything), st.just({"format_version": 1})
)
likely = st.builds(
    lambda entries: entries | {"format_version": 1},
    st.dictionaries(
        st.sampled_from(SHARED), st.sampled_from(WORDS) | st.floats(0, 1) | st.booleans() | st.integers(0, 9)
    ),
)


@st.composite
def damaged(draw: Any) -> bytes:
    """A valid config with a few bytes replaced, removed or repeated."""
    content = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        content[at : at + draw(st.integers(0, 4))] = draw(
            st.binary(max_size=4) | st.sampled_from([b"NaN", b"{", b'"', b"1e999"])
        )
    return bytes(content)


def check_message(message: str) -> None:
    """One line that begins with the file's name."""
    assert message.startswith("the file: ")
    assert len(message) < 1500
    assert message.isprintable()


def check_config(content: bytes) -> None:
    try:
        arguments = parse_config(SharpnessArguments, content, "the file")
    except ValueError as error:
        check_message(str(error))
        return
    assert set(arguments) <= set(SHARED)
    assert all(value is None or type(value) in (int, float, bool, str) for value in arguments.values())
    SharpnessArguments(**arguments).check_sharpness()


@EFFORTS
def test_any_config(effort: settings) -> None:
    @effort
    @given(st.binary(max_size=300) | damaged() | (configs | likely | anything).map(json.dumps).map(str.encode))
    @example(VALID)
    def check(content: bytes) -> None:
        check_config(content)

    check()


@pytest.mark.parametrize("depth", [10, 900, 960, 970, 980, 990, 1000, 10_000])
def test_any_depth(depth: int) -> None:
    for left, right in ("[]", ('{"":', "}")):
        check_config(b'{"format_version": 1, "optim": ' + left.encode() * depth + b"1" + right.encode() * depth + b"}")
        check_config(left.encode() * depth)


@EFFORTS
def test_a_damaged_config_sets_what_it_may_or_nothing(effort: settings) -> None:
    """Not a single config with a key that is not a sharpness argument is read."""

    @effort
    @given(likely, st.sampled_from(PRIVATE) | st.text(), anything)
    def check(config: dict[str, Any], key: str, value: Any) -> None:
        if key in SHARED or key in ("format_version", "hf_sharpness_version", "paper", "package", "effective"):
            return
        with pytest.raises(ValueError, match=r"^the file: "):
            parse_config(SharpnessArguments, json.dumps(config | {key: value}).encode(), "the file")

    check()
