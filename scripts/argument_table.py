"""Writes docs/arguments.md's table from the definitions of the arguments.

python scripts/argument_table.py            # print the table
python scripts/argument_table.py --write    # put it into docs/arguments.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from hf_sharpness.sharpness_arguments.definitions import descriptions

PAGE = Path(__file__).resolve().parents[1] / "docs" / "arguments.md"
BEGIN, END = "<!-- arguments: begin -->", "<!-- arguments: end -->"


def table() -> str:
    """The table in Markdown: argument, default, meaning."""
    rows = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for name, default, meaning in descriptions():
        default = "as in transformers" if name in ("optim", "base_optim") else f"`{default}`".lower()
        rows.append(f"| `{name}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def page_with_table() -> str:
    """The page with the table between its two marks brought up to date."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page_with_table())
    else:
        print(table())
