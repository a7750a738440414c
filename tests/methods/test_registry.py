"""Methods of one's own: registered late or early, by a script or a package, each with its own arguments."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models import Net, classification, steps_of
from transformers import HfArgumentParser

import hf_sharpness
from hf_sharpness import SharpnessArguments, SharpnessAware, TrainingArguments
from hf_sharpness.arguments import Seq2SeqTrainingArguments
from hf_sharpness.methods import METHODS, SAM, Method, Options, Step, hyperparameter, register, registry
from hf_sharpness.sharing.config import parse_config
from hf_sharpness.sharpness_arguments.definitions import descriptions
from hf_sharpness.tasks.recipe import check_training
from hf_sharpness.tasks.shared import check_shared_recipe, training_keys

BUILT_IN = tuple(METHODS)


def number(default: float | None, **options: Any) -> Any:
    return hyperparameter(default, help="A number, 10 % of it.", require="must be a number >= 0", **options)


@dataclasses.dataclass
class Own(Method):
    """Climbs by ``radius``, and hands over the gradient there times ``factor``."""

    name: ClassVar[str] = "own"
    metrics: ClassVar[tuple[str, ...]] = ("own_factor",)
    radius: float = number(0.1, valid=lambda v: v >= 0)
    alpha: float = number(0.4, valid=lambda v: v >= 0)
    rounds: int = number(1, valid=lambda v: v >= 1, most=50)

    @property
    def replays(self) -> int:
        return 1

    def run(self, step: Step) -> None:
        step.climb(self.radius)
        step.replay()
        for gradient in step.gradient():
            gradient.mul_(self.alpha)
        step.metrics["own_factor"] = self.alpha


@dataclasses.dataclass
class Wide(SAM):
    """SAM with another default."""

    name: ClassVar[str] = "wide"
    rho: float = 0.2


@pytest.fixture(autouse=True)
def only_built_in_methods() -> Iterator[None]:
    yield
    for name in set(METHODS) - set(BUILT_IN):
        registry.unregister(name)


def command_line(*line: str, kind: type = TrainingArguments) -> Any:
    return HfArgumentParser(kind).parse_args_into_dataclasses(["--output_dir", "out", *line], look_for_args_file=False)[
        0
    ]


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


def test_a_search_over_methods_takes_the_default_of_each() -> None:
    """As ``hyperparameter_search`` sets arguments: one by one, on arguments that were made before."""
    register(Wide)
    args = TrainingArguments("out", optim="sam")
    for optim, given, expected in [("wide", None, 0.2), ("sam", None, 0.05), ("wide", 0.05, 0.05), ("sam", None, 0.05)]:
        trial = copy.deepcopy(args)
        trial.optim = optim
        if given is not None:
            trial.sam_rho = given
        trial.check_sharpness()
        assert (trial.sam_rho, trial.method().rho) == (expected, expected)


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


ITEMS = classification(24)


def expected(radius: float, factor: float, lr: float) -> torch.Tensor:
    """SGD along ``factor`` times the gradient at w + radius g/||g||, written out."""
    model = Net().double()
    for (batch,) in steps_of(ITEMS, 8):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(model(**batch)["loss"], parameters)
        length = torch.sqrt(sum((g**2).sum() for g in gradients))
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p += radius * g / length
        perturbed = torch.autograd.grad(model(**batch)["loss"], parameters)
        with torch.no_grad():
            for p, g, h in zip(parameters, gradients, perturbed, strict=True):
                p -= radius * g / length + lr * factor * h
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_trains(train: Any, tmp_path: Path) -> None:
    """In the Trainer and in a plain loop, exactly; its metrics are logged; card and config name it."""
    register(Own)
    options = {"optim": "own", "base_optim": "sgd", "own_radius": 0.3, "own_alpha": 0.5}
    run = train(Net().double(), ITEMS, learning_rate=0.2, max_steps=3, max_grad_norm=0.0, **options)
    reference = expected(0.3, 0.5, 0.2)
    torch.testing.assert_close(run.weights[-1], reference, rtol=1e-9, atol=1e-9)
    assert run.series("own_factor") == [0.5] * 3
    assert run.series("perturbation_norm") == pytest.approx([0.3] * 3, rel=1e-5)

    run.trainer.model.config = None
    run.trainer.save_model(str(tmp_path / "saved"))
    assert TrainingArguments("out", sharpness_config=str(tmp_path / "saved")).method() == Own(radius=0.3, alpha=0.5)

    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    method = SharpnessAware(Own(radius=0.3, alpha=0.5), model, optimizer)
    for (batch,) in steps_of(ITEMS, 8):

        def closure(batch: Any = batch) -> torch.Tensor:
            loss = model(**batch)["loss"]
            loss.backward()
            return loss

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights, reference, rtol=1e-9, atol=1e-9)
    assert method.metrics["own_factor"] == 0.5


# Packages


PLUGIN = """
import dataclasses
from typing import ClassVar
from hf_sharpness import TrainingArguments  # a module of a method may import what is made from the methods
from hf_sharpness.methods import SAM, hyperparameter

@dataclasses.dataclass
class Plugged(SAM):
    name: ClassVar[str] = "plugged"
    rho: float = 0.3
    power: int = hyperparameter(2, help="Power.", require="must be >= 1", valid=lambda v: v >= 1)
"""


def install(folder: Path, package: str, module: str, source: str, value: str) -> None:
    """As pip leaves a package: its module, and a .dist-info with the entry point."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_sharpness.methods]\n{module} = {value}\n")


def python(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(Path(hf_sharpness.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def test_entry_points(tmp_path: Path) -> None:
    """One that works, and four that do not: a warning line each, which names the package."""
    install(tmp_path, "hf-plugged", "plugged", PLUGIN, "plugged:Plugged")
    install(tmp_path, "broken-one", "broken", "raise OSError('not\\ntoday')", "broken:Method")
    install(tmp_path, "leaving-one", "leaving", "import sys; sys.exit('bye')", "leaving:Method")
    install(tmp_path, "empty-one", "empty", "", "empty:Method")
    install(tmp_path, "clashing-one", "clashing", PLUGIN.replace('"plugged"', '"sgd"'), "clashing:Plugged")
    code = (
        "from hf_sharpness import TrainingArguments, SharpnessArguments\n"
        "args = TrainingArguments('out', optim='plugged', plugged_power=3)\n"
        "print(args.method(), args.sam_rho)\n"
        f"print(SharpnessArguments(optim='plugged').save_pretrained({str(tmp_path / 'saved')!r}).read_text())\n"
        "import hf_sharpness.trainer\n"
    )
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Plugged(rho=0.3, adaptive=False, steps=1, power=3) 0.3\n")
    assert '"package": "hf-plugged"' in done.stdout
    warnings = [line for line in done.stderr.splitlines() if "is not available" in line]
    assert len(warnings) == 4, done.stderr
    for package, reason in [
        ("broken-one", "OSError: not today"),
        ("leaving-one", "SystemExit: bye"),
        ("empty-one", "AttributeError"),
        ("clashing-one", "'sgd' is an optimizer of transformers"),
    ]:
        assert any(f"of the package {package} is not available" in line and reason in line for line in warnings)

    script = tmp_path / "script.py"
    script.write_text(
        "from transformers import HfArgumentParser, TrainingArguments\n"
        "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()\n"
        "print(type(args).__module__, args.method())\n"
    )
    line = ("--output_dir", "out", "--optim", "plugged", "--plugged_power", "4", "--do_eval")
    done = python(tmp_path, "-m", "hf_sharpness.run", str(script), *line)
    assert done.stdout.startswith("hf_sharpness.arguments Plugged(rho=0.3, adaptive=False, steps=1, power=4)"), (
        done.stderr
    )


def test_a_config_of_a_method_that_is_not_installed() -> None:
    config = {"format_version": 1, "optim": "plugged", "package": "hf-\x1b[31mplugged", "plugged_power": 3}
    with pytest.raises(ValueError, match=r"^the file: optim='plugged' is not known: ") as caught:
        parse_config(SharpnessArguments, json.dumps(config).encode(), "the file")
    assert str(caught.value).endswith(r"the package 'hf-\x1b[31mplugged', says the file: install it if you trust it")
    assert len(str(caught.value).splitlines()) == 1
    del config["package"]
    with pytest.raises(ValueError, match=r"a method of another package has to be installed$"):
        parse_config(SharpnessArguments, json.dumps(config).encode(), "the file")


@pytest.mark.parametrize("news", [{"sam_later": 1}, {"optim": "latersam"}, {"optim": "wsam", "wsam_mode": "third"}])
def test_a_config_of_a_later_version(news: dict[str, Any]) -> None:
    config = {"format_version": 1, "hf_sharpness_version": "99.0", "optim": "sam", **news}
    with pytest.raises(ValueError, match=r"the file is of hf_sharpness '99\.0': pip install -U hf_sharpness") as caught:
        parse_config(SharpnessArguments, json.dumps(config).encode(), "the file")
    assert len(str(caught.value).splitlines()) == 1
    config["hf_sharpness_version"] = hf_sharpness.__version__
    with pytest.raises(ValueError, match=r"^the file: ") as caught:
        parse_config(SharpnessArguments, json.dumps(config).encode(), "the file")
    assert "pip install -U" not in str(caught.value)


def test_names_that_are_taken_before_the_arguments_are_imported(tmp_path: Path) -> None:
    """Found when they are, and the method is then not registered any more."""
    (tmp_path / "early.py").write_text(
        "import dataclasses\n"
        "from typing import ClassVar\n"
        "from hf_sharpness.methods import METHODS, Method, hyperparameter, register\n"
        "@register\n"
        "@dataclasses.dataclass\n"
        "class Early(Method):\n"
        "    name: ClassVar[str] = 'warmup'\n"
        "    steps: int = hyperparameter(1, help='x', require='y', valid=lambda v: v >= 1)\n"
        "try:\n"
        "    import hf_sharpness.arguments\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "print(list(METHODS))\n"
        "from hf_sharpness import TrainingArguments\n"
        "print(TrainingArguments('out').warmup_steps)\n"
    )
    lines = python(tmp_path, str(tmp_path / "early.py")).stdout.splitlines()
    assert "has an argument or attribute warmup_steps already" in lines[0]
    assert lines[1:] == ["['sam', 'wsam', 'xsam']", "0"]
