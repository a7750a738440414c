"""Methods of packages: found by their entry points, and configs of methods that are not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hf_sharpness
from hf_sharpness import SharpnessArguments
from hf_sharpness.sharing.config import parse_config

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
