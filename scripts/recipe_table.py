"""Writes the tables of docs/recipes.md from the sections of a recipe.

python scripts/recipe_table.py            # print them
python scripts/recipe_table.py --write    # put them into docs/recipes.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from hf_sharpness.tasks.sections import DataSection, ModelSection, PeftSection, described_keys

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"


def table(section_class: type) -> str:
    """The table in Markdown: key, type, default, meaning."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, kind, default, meaning in described_keys(section_class):
        cells = (f"`{key}`", kind, f"`{default}`" if "required" not in default else "required", meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def page_with_tables() -> str:
    """The page with each table between its two marks brought up to date."""
    text = PAGE.read_text()
    for name, section_class in (("model", ModelSection), ("data", DataSection), ("peft", PeftSection)):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{table(section_class)}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page_with_tables())
    else:
        print(*map(table, (ModelSection, DataSection, PeftSection)), sep="\n\n")
