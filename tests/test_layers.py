"""Each layer imports only downwards, and the lower ones know nothing of transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import hf_sharpness

PACKAGE = Path(hf_sharpness.__file__).parent
ROOT = Path(__file__).parents[1]
LONGEST = 300
LAYERS = [
    {"vectors"},
    {"methods"},
    {"engine"},
    {"loop", "sharing"},
    {"sharpness_arguments"},
    {"arguments"},
    {"training"},
    {"trainer"},
    {"run", "patching", "tasks", "integrations"},
    {"compare", "measure"},
    {"cli"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def called(path: Path) -> str:
    """The name of a module, below the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {called(path): path for path in PACKAGE.rglob("*.py")}
del MODULES[""]  # what it re-exports is imported on first use, and its version is there before all


def imported_modules(name: str) -> set[str]:
    """The package's own modules that a module imports anywhere: in functions and under TYPE_CHECKING too."""
    package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *module])
            elif module[:1] == ["hf_sharpness"]:
                base = ".".join(module[1:])
            else:
                continue
            inner = {".".join(filter(None, (base, alias.name))) for alias in node.names}
            found |= {one if one in MODULES else base for one in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("hf_sharpness.") for alias in node.names if "hf_sharpness." in alias.name}
    return found & MODULES.keys() - {name}


IMPORTS = {name: imported_modules(name) for name in MODULES}


def test_every_module_has_its_layer() -> None:
    names = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert names - {"__init__", "__main__"} == set(HEIGHT)


def test_imports_go_downwards_only() -> None:
    for name, imported in IMPORTS.items():
        own = name.split(".")[0]
        for other in {module.split(".")[0] for module in imported} - {own}:
            if own != "__main__":
                assert HEIGHT[other] <= HEIGHT[own], f"{name} imports {other}, which lies above it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """No circles, within a folder either: module by module, whatever is imported by nothing that is left goes."""
    left = {name: set(imported) for name, imported in IMPORTS.items()}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    in_circles = {name: sorted(imported & left.keys()) for name, imported in left.items()}
    assert not in_circles, "each of these is in a circle, or imports a module that is"


def test_the_engine_and_the_plain_loop_load_no_transformers_and_no_accelerate() -> None:
    code = (
        "import sys, hf_sharpness; hf_sharpness.WSAM; "
        "print([m for m in ('transformers', 'accelerate') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert output.stdout.strip() == "[]"


def test_no_file_is_too_long() -> None:
    """Of the package, the tests, the scripts, the examples and the pages."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "scripts", ROOT / "examples", ROOT / "docs")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert Path(__file__) in files
    lines = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}
