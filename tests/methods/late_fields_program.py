"""Run by ``test_late_fields.py`` with several versions of Python; needs nothing installed.

python late_fields_program.py .../hf_sharpness/sharpness_arguments/late_fields.py
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import pickle
import sys
from typing import Any, ClassVar

spec = importlib.util.spec_from_file_location("late_fields", sys.argv[1])
late_fields = importlib.util.module_from_spec(spec)
spec.loader.exec_module(late_fields)


@dataclasses.dataclass
class Base:
    """Made before the subclasses, given more fields after them."""

    first: int = dataclasses.field(default=1, metadata={"help": "the first"})


@dataclasses.dataclass
class Stock:
    output: str = "out"
    items: list = dataclasses.field(default_factory=lambda: [1])
    choice: str = dataclasses.field(default="a", metadata={"help": "one of two", "choices": ["a", "b"]})


@dataclasses.dataclass
class Mixed(Base, Stock):
    tags: dict = dataclasses.field(default_factory=dict, metadata={"help": "tags"})
    count: ClassVar[int] = 0
    start: dataclasses.InitVar[int] = 5

    def __post_init__(self, start: int) -> None:
        self.started = start
        type(self).count += 1


@dataclasses.dataclass
class Deeper(Mixed):
    first: int = 7
    last: str = dataclasses.field(default="z", metadata={"help": "the last"}, compare=False)


@dataclasses.dataclass
class OwnInit(Base):
    """Its constructor is written by hand."""

    other: int = 2

    def __init__(self, both: int) -> None:
        self.first = self.other = both


@dataclasses.dataclass
class Wrapped(Base):
    other: int = 2


def _noting(init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.noted = True
        init(self, *args, **kwargs)

    return __init__


Wrapped.__init__ = _noting(Wrapped.__init__)


@dataclasses.dataclass(init=False, match_args=False)
class NoInit(Base):
    other: int = 2


@dataclasses.dataclass(order=True)
class Ordered(Base):
    other: int = 2


@dataclasses.dataclass(unsafe_hash=True, repr=False)
class Hashed(Base):
    other: int = 2


@dataclasses.dataclass(eq=False)
class OwnRepr(Base):
    other: int = 2

    def __repr__(self) -> str:
        return "own"

    __str__ = __repr__


class Undecorated(Deeper):
    pass


Executed: Any = None


exec(
    "@dataclasses.dataclass\n"
    "class Executed(Base):\n"
    "    other: int = 2\n"
    "    def __init__(self, first=1, other=2):\n"
    "        self.first, self.other, self.by_hand = first, other, True\n"
)


@dataclasses.dataclass
class KeywordOnly(Base):
    _: dataclasses.KW_ONLY
    other: int
    more: int = dataclasses.field(default=3, kw_only=False)


@dataclasses.dataclass(slots=True)
class Slotted(Base):
    other: int = 2


CLASSES = (Base, Mixed, Deeper, OwnInit, NoInit, Ordered, Hashed, OwnRepr, Undecorated, Executed, KeywordOnly, Slotted)
PICKLED = {cls: pickle.dumps(cls()) for cls in (Base, Mixed, Deeper, Ordered)}
ALIVE = Deeper(output="before")
FLAGS = {cls: cls.__dataclass_params__ for cls in CLASSES}
DOCS = {cls: cls.__doc__ for cls in CLASSES}
COUNTED = Mixed.count


def number(default: Any, text: str) -> tuple[type, dataclasses.Field]:
    return float, dataclasses.field(default=default, metadata={"help": text})


def fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls)}


def check(late: float) -> None:
    """What holds after the field ``late`` came, with this default."""
    for cls in CLASSES:
        assert fields(cls)["late"].metadata["help"] == "late", cls
        assert FLAGS[cls] is cls.__dataclass_params__, cls
        assert cls.late == late, cls
    assert all(DOCS[cls] == cls.__doc__ for cls in (Base, OwnInit)), "a docstring is kept"
    assert "late" in Deeper.__doc__, "one that dataclass wrote names the fields"

    assert list(fields(Mixed)) == ["output", "items", "choice", "first", "late", "tags"]
    made = Deeper(output="x", late=0.5, last="y", start=8)
    assert (made.output, made.first, made.late, made.last, made.started) == ("x", 7, 0.5, "y", 8)
    assert made.items == [1] and made.items is not Deeper().items
    assert made.tags == {} and made.tags is not Deeper().tags
    assert Deeper().late == late and "late=" in repr(made)
    assert Deeper(late=1.0) != Deeper(late=2.0) and Deeper(last="a") == Deeper(last="b")
    assert fields(Deeper)["choice"].metadata == {"help": "one of two", "choices": ["a", "b"]}
    assert fields(Deeper)["tags"].metadata["help"] == "tags" and fields(Deeper)["last"].metadata["help"] == "the last"
    assert Deeper.last == "z" and not hasattr(Deeper, "tags") and Deeper.start == 5
    assert Undecorated(late=3.0).late == 3.0

    assert vars(OwnInit(4)) == {"first": 4, "other": 4} and OwnInit(4).late == late
    assert Wrapped(other=3).noted and Wrapped(other=3).other == 3
    assert "__init__" not in vars(NoInit) and "__match_args__" not in vars(NoInit) and NoInit().late == late
    assert Executed(3).by_hand and Executed(3).late == late
    assert repr(OwnRepr(late=4.0)) == str(OwnRepr()) == "own" and OwnRepr(late=4.0).late == 4.0
    assert Ordered(late=1.0) < Ordered(late=2.0) and Ordered(1, 0.5, 3) == Ordered(first=1, late=0.5, other=3)
    assert hash(Hashed(late=1.0)) != hash(Hashed(late=2.0)) and "__repr__" not in vars(Hashed)
    keywords = KeywordOnly(1, 0.5, 9, other=2)
    assert (keywords.first, keywords.late, keywords.more, keywords.other) == (1, 0.5, 9, 2)
    assert Mixed.__match_args__ == ("output", "items", "choice", "first", "late", "tags", "start")
    slotted = Slotted(late=2.0, other=5)
    assert (slotted.late, slotted.other) == (2.0, 5) and "other" not in vars(slotted)

    for cls, data in PICKLED.items():
        assert pickle.loads(data).late == late, cls
        again = pickle.loads(pickle.dumps(cls(late=6.0)))
        assert again == cls(late=6.0) == copy.deepcopy(again), cls
    assert ALIVE.late == late and dataclasses.asdict(ALIVE)["output"] == "before"
    assert dataclasses.replace(Deeper(late=1.0), late=2.0, start=1).late == 2.0


own = {"first": (int, fields(Base)["first"])}
late_fields.set_fields(Base, {**own, "late": number(1.5, "late")})
check(1.5)
Mixed.count = COUNTED + 100
late_fields.set_fields(Base, {**own, "late": number(2.5, "late")})
assert Mixed.count == COUNTED + 100, "a class attribute is kept"
check(2.5)
late_fields.set_fields(Base, own)
for cls in CLASSES:
    assert "late" not in fields(cls) and not hasattr(cls, "late"), cls
assert Deeper(output="x").items == [1] and "late" not in Deeper.__doc__
try:
    Deeper(late=1.0)
except TypeError:
    print("all held")
