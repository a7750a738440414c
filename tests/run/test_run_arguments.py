"""TrainingArguments in every way that Hugging Face's tools make, change and store them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.training_args import OptimizerNames

import hf_sharpness
from hf_sharpness import Seq2SeqTrainingArguments, SharpnessArguments, TrainingArguments

GIVEN = {
    "optim": "wsam",
    "base_optim": "sgd",
    "sam_rho": 0.2,
    "sam_adaptive": True,
    "sam_steps": 2,
    "sam_scope": "device",
    "wsam_mode": "coupled",
    "wsam_gamma": 0.8,
    "xsam_rho_max": 0.3,
    "xsam_alpha": 0.5,
    "xsam_alpha_max": 1.5,
    "xsam_alpha_points": 11,
    "xsam_refresh": 7,
}
NAMES = [field.name for field in dataclasses.fields(SharpnessArguments)]
CLASSES = (TrainingArguments, Seq2SeqTrainingArguments)


@dataclasses.dataclass
class Other:
    model: str = dataclasses.field(metadata={"help": "The first of two dataclasses."})
    number: int = 1


@dataclasses.dataclass
class Derived(TrainingArguments):
    """What a library does: another default for a field, a field of its own, a __post_init__ around the inherited."""

    learning_rate: float = dataclasses.field(default=3e-4, metadata={"help": "Changed."})
    temperature: float = dataclasses.field(default=1.0, metadata={"help": "New."})

    def __post_init__(self) -> None:
        self.temperature = float(self.temperature)
        super().__post_init__()


def chosen(args: Any) -> dict[str, Any]:
    return {name: getattr(args, name) for name in GIVEN}


def command_line(values: dict[str, Any]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def where(tmp_path: Path) -> dict[str, Any]:
    return {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}


@pytest.mark.parametrize("cls", [*CLASSES, Derived])
@pytest.mark.parametrize("source", ["arguments", "args_file", "dict", "json", "yaml"])
def test_parser(source: str, cls: type, where: dict[str, Any], tmp_path: Path) -> None:
    """HfArgumentParser over two dataclasses, from the command line, an .args file, a dict, JSON and YAML."""
    parser = HfArgumentParser((Other, cls))
    values = {"model": "m", **where, **GIVEN}
    path = tmp_path / f"file.{source}"
    if source == "arguments":
        other, args = parser.parse_args_into_dataclasses(command_line(values))
    elif source == "args_file":
        path.write_text(" ".join(command_line(values)))
        other, args = parser.parse_args_into_dataclasses([], args_filename=str(path))
    elif source == "dict":
        other, args = parser.parse_dict(values)
    elif source == "json":
        path.write_text(json.dumps(values))
        other, args = parser.parse_json_file(str(path))
    else:
        path.write_text(yaml.safe_dump(values))
        other, args = parser.parse_yaml_file(str(path))
    assert type(args) is cls
    assert isinstance(args, transformers.TrainingArguments)
    assert (other.model, other.number) == ("m", 1)
    assert chosen(args) == GIVEN


@pytest.mark.parametrize("cls", CLASSES)
def test_parser_defaults(cls: type, where: dict[str, Any]) -> None:
    """Nothing given is what the stock class gives."""
    stock = getattr(transformers, cls.__name__)
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses(command_line(where))
    (plain,) = HfArgumentParser(stock).parse_args_into_dataclasses(command_line(where))
    ours = {k: v for k, v in args.to_dict().items() if k not in NAMES or k == "optim"}
    assert ours == plain.to_dict()
    assert isinstance(args.optim, OptimizerNames)
    assert not args.uses_sharpness


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ([], False),
        (["--sam_adaptive"], True),
        (["--sam_adaptive", "true"], True),
        (["--sam_adaptive", "False"], False),
        (["--sam_adaptive=1"], True),
        (["--sam_adaptive", "no"], False),
        (["--sam-adaptive"], True),
    ],
)
def test_booleans(given: list[str], value: bool, where: dict[str, Any]) -> None:
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        [*command_line(where), *given, "--optim", "sam"]
    )
    assert args.sam_adaptive is value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--optim", "wsan"], "argument --optim: invalid choice: 'wsan'"),
        (["--base_optim", "wsam"], "argument --base_optim/--base-optim: invalid choice: 'wsam'"),
        (["--sam_scope", "all"], "argument --sam_scope/--sam-scope: invalid choice: 'all'"),
        (["--sam_rho", "big"], "argument --sam_rho/--sam-rho: invalid float value: 'big'"),
        (["--sam_adaptive", "perhaps"], "argument --sam_adaptive/--sam-adaptive: Truthy value expected"),
    ],
)
def test_parser_errors(
    given: list[str], message: str, where: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses([*command_line(where), *given])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_numbers_as_text(where: dict[str, Any], tmp_path: Path) -> None:
    """YAML reads `1e-1` as a text."""
    lines = [
        "optim: xsam",
        "sam_rho: 1e-1",
        "sam_steps: '2'",
        "xsam_rho_max: 2e-1",
        "xsam_refresh: '3'",
        "wsam_gamma: 5e-1",
    ]
    (tmp_path / "args.yaml").write_text("\n".join([*lines, f"output_dir: {where['output_dir']}"]))
    (args,) = HfArgumentParser(hf_sharpness.TrainingArguments).parse_yaml_file(str(tmp_path / "args.yaml"))
    got = [getattr(args, line.partition(":")[0]) for line in lines[1:]]
    assert got == [0.1, 2, 0.2, 3, 0.5]
    assert [type(value) for value in got] == [float, int, float, int, float]


@pytest.mark.parametrize(("name", "text"), [("sam_rho", "much"), ("sam_rho", "nan"), ("sam_steps", "1.5")])
def test_text_that_is_no_number(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='?{text}'? is not valid"):
        hf_sharpness.SharpnessArguments(**{name: text})


def test_unknown_key(where: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sam_roh"):
        HfArgumentParser(TrainingArguments).parse_dict({**where, "sam_roh": 0.1})


@pytest.mark.parametrize("optim", ["wsam", "sgd"])
@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_USE_CPU": "true"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_DYNAMO_BACKEND": "no"},
        {"ACCELERATE_TORCH_DEVICE": "cpu"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_accelerate_environment(
    variables: dict[str, str], optim: str, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `accelerate launch` sets has the effect that it has on the stock class."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    del where["use_cpu"]
    plain = transformers.TrainingArguments(**where, optim="sgd")
    args = TrainingArguments(**where, optim=optim, base_optim="sgd")
    for name in "mixed_precision", "device", "n_gpu", "gradient_accumulation_steps", "parallel_mode", "bf16", "fp16":
        assert getattr(args, name, None) == getattr(plain, name, None), name


@pytest.mark.parametrize("value", ["true", "1", "yes"])
def test_deepspeed_environment(value: str, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", value)
    with pytest.raises(ValueError, match="does not run under DeepSpeed"):
        TrainingArguments(**where, optim="wsam", sam_scope="device")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["sam", "wsam", "xsam"])
def test_set_optimizer(name: str, cls: type, where: dict[str, Any]) -> None:
    """The fluent way, in company with the other setters."""
    args = cls(**where, sam_rho=0.3, base_optim="adafactor")
    assert args.set_optimizer(name, learning_rate=0.02, weight_decay=0.1, args="x=1") is args
    assert (args.optim, args.base_optim, args.method().rho) == (name, "adafactor", 0.3)
    assert (args.learning_rate, args.weight_decay, args.optim_args) == (0.02, 0.1, "x=1")
    args = args.set_lr_scheduler("cosine", warmup_steps=3).set_training(batch_size=5).set_logging(steps=7)
    assert (args.optim, args.warmup_steps, args.per_device_train_batch_size) == (name, 3, 5)


def test_set_stock_optimizer(where: dict[str, Any]) -> None:
    args = TrainingArguments(**where, optim="wsam").set_optimizer(OptimizerNames.SGD, learning_rate=0.5)
    plain = transformers.TrainingArguments(**where).set_optimizer("sgd", learning_rate=0.5)
    assert args.optim == plain.optim == OptimizerNames.SGD
    assert args.learning_rate == plain.learning_rate
    assert not args.uses_sharpness


@pytest.mark.parametrize(("name", "message"), [("wsan", "wsan"), ("xsam", "sam_scope='device'")])
def test_set_optimizer_errors(name: str, message: str, where: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingArguments(**where, sam_scope="device").set_optimizer(name)


@pytest.mark.parametrize("cls", [*CLASSES, Derived])
@pytest.mark.parametrize("given", [GIVEN, {"optim": "adafactor"}], ids=["wsam", "stock"])
def test_round_trips(given: dict[str, Any], cls: type, where: dict[str, Any], tmp_path: Path) -> None:
    """to_dict, JSON, copies, pickle and training_args.bin give the same arguments again."""
    args = cls(**where, **given)
    torch.save(args, tmp_path / "training_args.bin")
    copies = {
        "to_dict": cls(**args.to_dict()),
        "to_json_string": cls(**json.loads(args.to_json_string())),
        "copy": copy.copy(args),
        "deepcopy": copy.deepcopy(args),
        "replace": dataclasses.replace(args),
        "pickle": pickle.loads(pickle.dumps(args)),
        "training_args.bin": torch.load(tmp_path / "training_args.bin", weights_only=False),
    }
    for how, again in copies.items():
        assert type(again) is cls, how
        assert again.to_dict() == args.to_dict(), how
        assert again.uses_sharpness == args.uses_sharpness, how
        assert again.method() == args.method(), how
    assert json.loads(args.to_json_string())["optim"] == given["optim"]
    assert args.to_sanitized_dict()["sam_rho"] == args.sam_rho
    assert f"optim={given['optim']}" in str(args).replace("OptimizerNames.", "").replace("'", "").lower()


def test_change_one(where: dict[str, Any]) -> None:
    args = dataclasses.replace(TrainingArguments(**where, **GIVEN), sam_rho=0.9)
    assert chosen(args) == {**GIVEN, "sam_rho": 0.9}


@pytest.mark.slow
def test_loads_in_a_new_process(where: dict[str, Any], tmp_path: Path) -> None:
    """training_args.bin needs no import beforehand."""
    torch.save(Seq2SeqTrainingArguments(**where, **GIVEN), tmp_path / "training_args.bin")
    code = (
        "import sys, torch; args = torch.load(sys.argv[1], weights_only=False);"
        "print(type(args).__module__, args.optim, args.sam_rho, args.output_dir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "training_args.bin"],
        capture_output=True,
        text=True,
        cwd=Path(hf_sharpness.__file__).parents[1],
    )
    assert done.stdout.split() == ["hf_sharpness.arguments", "wsam", "0.2", where["output_dir"]], done.stderr


def test_classes_relate_like_transformers() -> None:
    """isinstance and issubclass answer as they do for transformers' classes."""
    assert issubclass(hf_sharpness.Seq2SeqTrainer, hf_sharpness.Trainer)
    assert issubclass(hf_sharpness.Seq2SeqTrainingArguments, hf_sharpness.TrainingArguments)
    for name in "Trainer", "Seq2SeqTrainer", "TrainingArguments", "Seq2SeqTrainingArguments":
        assert issubclass(getattr(hf_sharpness, name), getattr(transformers, name))


def test_signatures() -> None:
    """Libraries look at the parameters of Trainer to see what this version of transformers takes."""
    import inspect

    for name in "Trainer", "Seq2SeqTrainer":
        ours, stock = (getattr(package, name) for package in (hf_sharpness, transformers))
        assert inspect.signature(ours) == inspect.signature(stock)
        assert inspect.signature(ours.__init__) == inspect.signature(stock.__init__)
