"""Methods of one's own: registered late or early, each with its own arguments; and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
from own_registered import BUILT_IN, Own, Wide, command_line, number
from own_registered import only_built_in_methods as only_built_in_methods
from transformers import HfArgumentParser

from hf_sharpness import SharpnessArguments, TrainingArguments
from hf_sharpness.arguments import Seq2SeqTrainingArguments
from hf_sharpness.methods import METHODS, SAM, Method, Options, register, registry
from hf_sharpness.sharing.config import parse_config
from hf_sharpness.sharpness_arguments.definitions import descriptions
from hf_sharpness.tasks.recipe import check_training
from hf_sharpness.tasks.shared import check_shared_recipe, training_keys


def test_everything_derives_from_the_registry(tmp_path: Path) -> None:
    """Choices, flags, help, keys of JSON, configs and recipes, and what strangers may set; and it all goes again."""
    names = {"own_radius", "own_alpha", "own_rounds"}
    for there in (True, False):
        if there:
            assert register(Own) is Own
        else:
            registry.unregister("own")
        assert ("own" in METHODS) is there
        help = " ".join(HfArgumentParser(TrainingArguments).format_help().split())
        assert ("--own_radius" in help) is there
        assert ("{sam,wsam,xsam,own,adamw_torch" in help) is there
        assert ("A number, 10 % of it. (default: 0.4)" in help) is there
        fields = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
        assert names & fields == (names if there else set())
        assert names & set(TrainingArguments("out").to_dict()) == (names if there else set())
        assert names & SharpnessArguments.shared_types().keys() == (names if there else set())
        assert names & training_keys() == (names if there else set())
        assert names & {name for name, *_ in descriptions()} == (names if there else set())
        assert ("OWN" in registry.variants()) is there

    register(Own)
    assert command_line("--optim", "own", "--own_radius", "1e-1").method() == Own(radius=0.1)
    (tmp_path / "args.json").write_text(json.dumps({"output_dir": "out", "optim": "own", "own_rounds": 3}))
    (args,) = HfArgumentParser(TrainingArguments).parse_json_file(str(tmp_path / "args.json"))
    assert args.method() == Own(rounds=3)
    check_training({"optim": "own", "own_alpha": 0.3}, TrainingArguments, "recipe")
    check_shared_recipe({"training": {"own_alpha": 0.3}}, "recipe")
    with pytest.raises(ValueError, match="own_rounds: 51 is too large for a shared recipe: must be at most 50"):
        check_shared_recipe({"training": {"own_rounds": 51}}, "recipe")
    path = SharpnessArguments(optim="own", own_alpha=0.7).save_pretrained(tmp_path)
    options = [f"sam_{field.name}" for field in dataclasses.fields(Options)]
    keys = ["optim", "base_optim", "own_radius", "own_alpha", "own_rounds", *options]
    assert list(json.loads(path.read_text()))[3:] == keys
    assert TrainingArguments("out", sharpness_config=str(path)).method() == Own(alpha=0.7)
    with pytest.raises(ValueError, match="own_rounds=51 is too large for a config: must be at most 50"):
        parse_config(SharpnessArguments, b'{"format_version": 1, "own_rounds": 51}', "the file")


def test_arguments_reach_the_method_that_owns_them() -> None:
    """XSAM has an alpha too."""
    register(Own)
    line = ["--xsam_alpha", "0.7", "--own_alpha", "0.3"]
    assert command_line("--optim", "own", *line).method().alpha == 0.3
    assert command_line("--optim", "xsam", *line).method().alpha == 0.7
    assert command_line("--optim", "own", "--xsam_alpha", "0.7").method().alpha == 0.4
    assert command_line("--optim", "xsam", "--own_alpha", "0.3").method().alpha is None


def test_a_method_shares_the_arguments_of_its_base_and_has_defaults_of_its_own() -> None:
    register(Wide)
    assert registry.arguments_of(Wide).keys() == {"sam_rho", "sam_adaptive", "sam_steps"}
    assert "(default: 0.05; wide: 0.2)" in " ".join(HfArgumentParser(TrainingArguments).format_help().split())
    args = command_line("--optim", "wide")
    assert (args.sam_rho, args.method()) == (0.2, Wide(rho=0.2))
    assert command_line("--optim", "sam").sam_rho == command_line().sam_rho == 0.05
    assert command_line("--optim", "wide", "--sam_rho", "0.05").method().rho == 0.05
    with pytest.raises(ValueError, match=r"sam_rho=-1\.0 is not valid: must be a finite number >= 0"):
        command_line("--optim", "wide", "--sam_rho", "-1")
    with pytest.raises(ValueError, match="rho=-1 is not valid"):
        Wide(rho=-1)
    assert TrainingArguments(**args.to_dict()).method() == Wide(rho=0.2)


@dataclasses.dataclass
class Derived(TrainingArguments):
    tags: list[str] = dataclasses.field(default_factory=lambda: ["a"], metadata={"help": "Tags."})
    sam_rho: float = dataclasses.field(default=0.3, metadata={"help": "Mine."})


@dataclasses.dataclass
class OwnInit(TrainingArguments):
    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(output_dir=folder, **options)


def test_late_registration_keeps_what_was_there(tmp_path: Path) -> None:
    """Classes derived before, arguments made before and pickled before; a default_factory, a constructor, metadata."""
    before = Derived("out", optim="sam")
    data = pickle.dumps(before)
    register(Own)
    assert before.own_alpha == pickle.loads(data).own_alpha == 0.4
    again = pickle.loads(data)
    again.__dict__.pop("_given")  # as the first version pickled them
    again.optim = "own"
    again.check_sharpness()
    assert (again.method(), again.sam_rho) == (Own(), 0.3)
    made = Derived("out", optim="own", own_alpha=0.6)
    assert pickle.loads(pickle.dumps(made)).method() == copy.deepcopy(made).method() == Own(alpha=0.6)
    assert Derived(**made.to_dict()).to_dict() == made.to_dict()
    assert (made.tags, made.sam_rho) == (["a"], 0.3)
    assert OwnInit("there", optim="own", own_alpha=0.6).method() == Own(alpha=0.6)
    line = command_line("--optim", "own", "--tags", "b", "c", "--own_alpha", "0.9", kind=Derived)
    assert (line.tags, line.sam_rho, line.method()) == (["b", "c"], 0.3, Own(alpha=0.9))
    help = " ".join(HfArgumentParser(Derived).format_help().split())
    assert "Mine. (default: 0.3)" in help
    assert "Tags." in help


def test_a_cell_that_runs_again() -> None:
    def cell(default: float) -> type[Method]:
        @dataclasses.dataclass
        class Mine(Method):
            name: ClassVar[str] = "mine"
            size: float = number(default, valid=lambda v: v >= 0)

        return register(Mine)

    cell(0.1)
    second = cell(0.5)
    assert METHODS["mine"] is second is register(second)
    assert command_line("--optim", "mine").mine_size == 0.5


def made(**attributes: Any) -> type:
    annotations = {name: ClassVar[str] if name == "name" else float for name in attributes}
    bases = attributes.pop("bases", (Method,))
    annotations.pop("bases", None)
    return dataclasses.dataclass(type("Made", bases, {"__annotations__": annotations, **attributes}))


REFUSED = {
    "adam_beta1": (lambda: made(name="adam", beta1=number(0.9, valid=bool)), "has an argument or attribute adam_beta1"),
    "warmup_steps": (lambda: made(name="warmup", steps=number(1.0, valid=bool)), "attribute warmup_steps already"),
    "world_size": (lambda: made(name="world", size=number(1.0, valid=bool)), "has an argument or attribute world_size"),
    "an option": (lambda: made(name="sam", bases=(SAM,), scope=number(1.0, valid=bool)), "the name 'sam' is that of"),
    "sharpness_config": (lambda: made(name="sharpness", config=number(1.0, valid=bool)), "sharpness_config already"),
    "an optimizer": (lambda: made(name="sgd"), "'sgd' is an optimizer of transformers"),
    "another method": (lambda: made(name="sam"), r"the name 'sam' is that of hf_sharpness\.methods\.sam\.SAM"),
    "another's argument": (lambda: made(name="xsam_alpha", max=number(2.0, valid=bool)), "xsam_alpha_max is xsam's"),
    "a user's field": (lambda: made(name="temper", ature=number(1.0, valid=bool)), None),
    "no name": (lambda: made(), "name=None is not valid"),
    "a bad name": (lambda: made(name="My-SAM"), "name='My-SAM' is not valid: must be lower case letters"),
    "no method": (lambda: int, "must be a subclass of hf_sharpness.methods.Method"),
    "no class": (lambda: Own(), "must be a subclass of hf_sharpness.methods.Method"),
    "a bare field": (lambda: made(name="bare", size=3.0), "the field size is no hyper-parameter: define it by hyper"),
    "a bad default": (lambda: made(name="bad", size=number(-1.0, valid=lambda v: v > 0)), "the default size=-1.0 is"),
    "None beside a default": (
        lambda: dataclasses.make_dataclass(
            "Made",
            [("size", float | None, number(1.0, valid=lambda v: True))],
            bases=(Method,),
            namespace={"name": "n"},
        ),
        'size may be None, which stands for "not given"',
    ),
    "a list": (
        lambda: dataclasses.make_dataclass(
            "Made", [("sizes", tuple, number((1.0,), valid=bool))], bases=(Method,), namespace={"name": "n"}
        ),
        "the type of sizes, <class 'tuple'>, cannot be an argument's",
    ),
    "undecorated": (lambda: type("Made", (SAM,), {"name": "plain", "rho": 0.3}), "rho would have no effect: put @data"),
}


@pytest.mark.parametrize(("build", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_register_refuses(build: Any, problem: str | None) -> None:
    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    if problem is None:
        register(build())
        return
    with pytest.raises((TypeError, ValueError), match=problem):
        register(build())
    assert tuple(METHODS) == BUILT_IN
    assert [field.name for field in dataclasses.fields(TrainingArguments)] == fields
    assert command_line("--optim", "wsam").method() == METHODS["wsam"]()


def test_a_field_of_a_users_class_is_taken() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        taken_size: int = 3

    with pytest.raises(ValueError, match="Mine has an argument or attribute taken_size already"):
        register(made(name="taken", size=number(1.0, valid=bool)))
    del Mine


@pytest.mark.parametrize("value", ["much", "true", "nan", "inf", None, True, "-1"])
def test_an_authors_check_may_be_careless(value: Any) -> None:
    """``valid=lambda v: v >= 0`` is enough: type and finiteness go by the annotation."""
    register(Own)
    if value is None:
        assert TrainingArguments("out", optim="own", own_radius=None).own_radius == 0.1
        return
    with pytest.raises(ValueError, match=r"own_radius=.* is not valid: must be a number >= 0"):
        TrainingArguments("out", optim="own", own_radius=value)


def test_the_radius_of_a_method() -> None:
    """The first that it declares of those it has with a default, under the name of its argument; and that of all."""

    @register
    @dataclasses.dataclass
    class Declared(Own):
        name: ClassVar[str] = "declared"
        radii: ClassVar[tuple[str, ...]] = ("none", "unset", "radius", "alpha")
        unset: float | None = number(None, valid=lambda v: v is None or v >= 0)

    register(Wide)
    assert registry.radius_of(Own) is None
    found = {name: registry.radius_of(cls) for name, cls in METHODS.items()}
    assert {name: (radius.argument, radius.default) for name, radius in found.items()} == {
        "sam": ("sam_rho", 0.05),
        "wsam": ("sam_rho", 0.05),
        "xsam": ("sam_rho", 0.05),
        "declared": ("own_radius", 0.1),
        "wide": ("sam_rho", 0.2),
    }
    assert list(registry.radii()) == ["sam_rho", "own_radius"]


def test_scopes_are_global_unless_the_method_says_more() -> None:
    register(Own)
    assert Own.scopes == ("global",)
    with pytest.raises(ValueError, match="sam_scope='device' is not defined for optim='own': use sam_scope='global'"):
        TrainingArguments("out", optim="own", sam_scope="device")


def test_the_paper_is_the_classs_own() -> None:
    """Not that of the method it derives from."""
    assert (Wide().paper, Wide().bibtex, Wide().cited) == ("", "", {})
    assert set(Wide(adaptive=True).cited) == {"2102.11600"}
    assert set(SAM().cited) == {"2010.01412"}
