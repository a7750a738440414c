"""Each layer imports only downwards, and the lower ones know nothing of transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import hf_sharpness

PACKAGE = Path(hf_sharpness.__file__).parent
LAYERS = [
    {"shards"},
    {"lengths"},
    {"vectors"},
    {"methods"},
    {"engine"},
    {"loop", "loop_classes", "sharing"},
    {"other_trainers", "late_fields", "argument_definitions", "argument_fields", "argument_checks", "arguments"},
    {"training"},
    {"trainer"},
    {"run", "patching", "tasks", "integrations"},
    {"compare", "measure"},
    {"cli"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports outside of `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth and id(node) not in typing_only:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found & HEIGHT.keys()


def test_every_module_has_its_layer() -> None:
    names = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == set(HEIGHT)


def test_imports_go_downwards_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imported_modules(path) - {own}:
            assert HEIGHT[name] <= HEIGHT[own], f"{path.relative_to(PACKAGE)} imports {name}, which lies above it"


def test_the_engine_and_the_plain_loop_load_no_transformers_and_no_accelerate() -> None:
    code = (
        "import sys, hf_sharpness; hf_sharpness.WSAM; "
        "print([m for m in ('transformers', 'accelerate') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert output.stdout.strip() == "[]"
