"""What is made from the code says what the code says: tables of the documentation, the picture of the layers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_arguments_is_current() -> None:
    assert script("argument_table").page_with_table() == (ROOT / "docs" / "arguments.md").read_text(), (
        "run: python scripts/argument_table.py --write"
    )


def test_the_tables_of_recipe_keys_are_current() -> None:
    pytest.importorskip("pydantic")
    assert script("recipe_table").page_with_tables() == (ROOT / "docs" / "recipes.md").read_text(), (
        "run: python scripts/recipe_table.py --write"
    )


def test_the_picture_of_the_layers_is_current() -> None:
    assert script("layer_picture").picture() == (ROOT / "docs" / "layers.svg").read_text(), (
        "run: python scripts/layer_picture.py --write"
    )


def test_the_page_of_results_is_current() -> None:
    assert script("results_page").page() == (ROOT / "recipes" / "RESULTS.md").read_text(), (
        "run: python scripts/results_page.py --write"
    )
