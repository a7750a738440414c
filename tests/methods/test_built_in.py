"""This package's methods: a file in ``methods/`` each, which nothing else names."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hf_sharpness
from hf_sharpness.methods import METHODS

PACKAGE = Path(hf_sharpness.__file__).parent
OWN = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("hf_sharpness.methods.")}
ALLOWED = {
    ("methods/options.py", "sam"),  # with which the arguments of every method's steps begin
    ("compare/measures.py", "SAM"),  # the sharpness that models are compared by is what SAM measures
    ("measure/on_request.py", "sam"),  # a picture of this name
    ("measure/pictures.py", "sam"),
}
"""And: the measuring commands write of SAM and ASAM, whose perturbations they measure."""


def words(tree: ast.AST) -> Iterator[str]:
    """Names, imported modules and whole texts, docstrings left out."""
    documentation = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_no_other_file_names_a_method() -> None:
    assert set(OWN) == {"sam", "wsam", "xsam"}
    names = {word for name, cls in OWN.items() for word in (name, cls.__name__)}
    # What begins with "sam_" are also the options of every method's steps.
    prefixes = tuple(f"{name}_" for name in OWN if name != "sam")
    homes = {Path(sys.modules[cls.__module__].__file__ or "") for cls in OWN.values()}
    found = {
        (str(path.relative_to(PACKAGE)), word)
        for path in PACKAGE.rglob("*.py")
        if path not in homes
        for word in words(ast.parse(path.read_text()))
        if (word in names or word.startswith(prefixes))
        and not (word in ("SAM", "ASAM") and path.parent.name == "measure")
    }
    local = {("compare/measures.py", "sam")}  # a variable
    assert found - local == ALLOWED


FOURTH = """
import dataclasses
from typing import ClassVar

from .registry import register
from .sam import SAM


@register
@dataclasses.dataclass
class Fourth(SAM):
    \"\"\"A fourth.\"\"\"

    name: ClassVar[str] = "fourth"
"""
PROGRAM = """
import sys
from hf_sharpness import Fourth, TrainingArguments
from hf_sharpness.methods import METHODS, Fourth as Method

assert METHODS["fourth"] is Method and Fourth.__name__ == "Fourth"
assert TrainingArguments("out", optim="fourth", use_cpu=True).method() == Method()
print("known")
"""


def test_one_more_file_is_one_more_method(tmp_path: Path) -> None:
    """Nothing else has to be changed."""
    shutil.copytree(PACKAGE, tmp_path / "hf_sharpness", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hf_sharpness" / "methods" / "fourth.py").write_text(FOURTH)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == "known\n", done.stderr
