"""What the README says is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_arguments_is_current() -> None:
    spec = importlib.util.spec_from_file_location("argument_table", ROOT / "scripts" / "argument_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.readme_with_table() == (ROOT / "README.md").read_text(), (
        "run: python scripts/argument_table.py --write"
    )
