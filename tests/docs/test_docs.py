"""Every command and every snippet of the documentation is executed, on stand-ins for its models and data."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {
    "lora-sft": ("trl", "peft"),
    "vit": ("datasets", "sklearn"),
    "text-classification": ("datasets",),
    "compare": ("optuna", "rliable", "torchmetrics", "sklearn"),
    "measure": ("sklearn", "scipy"),
    "hyperparameter-search": ("datasets", "optuna"),
    "ray-tune": ("datasets", "ray"),
}
OPTIONAL = {"training-step": "trl"}
"""A package that some of a page's snippets need: these are run apart from the others."""
SLOW = ("hf-sharpness rho", "train digits-vit", "train first-try", "accelerate launch", "torchrun", "--sam_rho 0.05")
"""What a command that takes long has in it (the last: it differs from one that is run by its rho alone)."""
TWO_PROCESSES = ("accelerate launch", "torchrun")
PRELUDE = ("getting-started",)
"""Pages whose snippets take a model and data for granted."""
MADE_BY_CI = ("make ", "pip ")
"""Commands that set the environment up: CI runs them, this test lives in what they made."""
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks in a language."""
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def run(command: list[str], folder: Path, site: Path | None = None) -> None:
    """Run a command as a user would in that folder, with the installed commands and the packages in `site`."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(site or ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf-home"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the stand-ins have relative names
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stand_ins import furnish

    folder = tmp_path_factory.mktemp("docs")
    furnish(folder)
    return folder


def snippets() -> list[Any]:
    """Page, its Python blocks that are run one after the other, and the packages they need."""
    parts = []
    for page in PAGES:
        optional = OPTIONAL.get(page.stem)
        apart = [code for code in blocks(page, "python") if optional and f"from {optional} import" in code]
        rest = [code for code in blocks(page, "python") if code not in apart]
        needed = NEEDS.get(page.stem, ())
        if rest:
            parts.append(pytest.param(page, rest, needed, id=page.stem))
        if optional:
            assert apart, f"no snippet of {page.name} needs {optional}"
            parts.append(pytest.param(page, apart, (*needed, optional), id=f"{page.stem}-{optional}"))
    return parts


@pytest.mark.usually("getting-started|pytorch|accelerate")
@pytest.mark.parametrize(("page", "code", "needed"), snippets())
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: Path, code: list[str], needed: tuple[str, ...], furnished: Path, request: pytest.FixtureRequest
) -> None:
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    script = furnished / f"{request.node.callspec.id}_page.py"
    prelude = (Path(__file__).parent / "prelude.py").read_text() if page.stem in PRELUDE else ""
    script.write_text("\n".join([prelude, *code]))
    run([sys.executable, script.name], furnished)


def test_the_page_on_methods_shows_an_example_as_it_is() -> None:
    shown = blocks(ROOT / "docs" / "your-own-method.md", "python")[0]
    assert shown == (ROOT / "examples" / "methods" / "gsam" / "hf_sharpness_gsam.py").read_text()


@pytest.mark.parametrize(
    ("name", "kind", "processes", "cpu"),
    [("ddp", "MULTI_GPU", 8, False), ("fsdp2", "FSDP", 8, False), ("cpu2", "MULTI_GPU", 2, True)],
)
def test_accelerate_reads_the_configs(name: str, kind: str, processes: int, cpu: bool) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "docs" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (str(config.distributed_type.value), config.num_processes, config.use_cpu) == (kind, processes, cpu)
    assert config.fsdp_config.get("fsdp_version") == (2 if kind == "FSDP" else None)
    assert path.read_text().startswith(
        f"# accelerate launch --config_file docs/accelerate/{name}.yaml -m hf_sharpness.run your_script.py --optim wsam"
    )


COMMANDS = list(
    dict.fromkeys(
        line
        for page in PAGES
        for code in blocks(page, "bash")
        for line in code.splitlines()
        if line and not line.startswith(MADE_BY_CI)
    )
)


@pytest.mark.usually(r"train.py --optim wsam$|--help-all|measure outputs/mine$|recipe")
@pytest.mark.parametrize(
    "command",
    [pytest.param(c, id=c, marks=[pytest.mark.slow] if any(word in c for word in SLOW) else []) for c in COMMANDS],
)
def test_a_command_of_the_documentation_runs(command: str, furnished: Path) -> None:
    if not (Path(sys.executable).parent / "hf-sharpness").exists():
        pytest.skip("the package is not installed, so its command is not on the path")
    if ("deepspeed" in command or "zero3" in command) and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    if "zero3" in command:
        command += " --use_cpu"  # else transformers takes the ranks of DeepSpeed on a CPU for single processes
    for earlier in furnished.glob("**/rank-*"):
        earlier.unlink()
    run(["bash", "-ec", command], furnished, site=furnished / "site")
    if command.startswith(TWO_PROCESSES):
        assert {path.name for path in furnished.glob("**/rank-*")} == {"rank-0-of-2", "rank-1-of-2"}
