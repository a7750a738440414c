"""Draws docs/layers.svg, the layers of the package in one picture, from those that tests/test_layers.py checks.

python scripts/layer_picture.py --write
"""

from __future__ import annotations

import ast
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "layers.svg"
WIDTH, ROW, GAP, MARGIN = 1000, 50, 10, 20
PURPOSE = {
    "cli": "the command hf-sharpness",
    "compare": "studies with a verdict",
    "tasks": "recipes; scripts and tools as they are; plugins",
    "trainer": "Trainer, Seq2SeqTrainer, and the mixin for any other",
    "training": "what the Trainer needs: replays, callback, averages, model cards",
    "arguments": "training arguments",
    "sharpness_arguments": "what is in them, made from the methods' hyper-parameters",
    "loop": "the plain loop; sharpness_config.json, files from the Hub",
    "engine": "runs a method's passes safely: weights, scopes, state, rounding, DeepSpeed",
    "methods": "the update rules, their hyper-parameters, the registry",
    "vectors": "arithmetic on lists of tensors",
}
"""What a layer is for, by one of its modules."""


def layers() -> list[set[str]]:
    """The layers, the lowest first."""
    for node in ast.parse((ROOT / "tests" / "test_layers.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LAYERS":
            return ast.literal_eval(node.value)
    raise LookupError("tests/test_layers.py has no LAYERS")


def picture() -> str:
    """The picture as SVG: a box for each layer, the highest on top."""
    rows = layers()[::-1]
    below = next(i for i, names in enumerate(rows) if "loop" in names)
    height = 2 * MARGIN + len(rows) * (ROW + GAP) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">',
        "<title>The layers of hf_sharpness: each imports only from those below it</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for i, names in enumerate(rows):
        purpose = next((text for name, text in PURPOSE.items() if name in names), "")
        y = MARGIN + i * (ROW + GAP) + (40 if i >= below else 0)
        fill = "#e3ecf7" if i < below else "#e5f2e5"
        title = escape(", ".join(sorted(names)))
        lines += [
            f'<rect x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{ROW}" rx="6" fill="{fill}" '
            'stroke="#44546a"/>',
            f'<text x="{MARGIN + 14}" y="{y + 21}" font-size="17" font-weight="bold" fill="#1a1a1a">{title}</text>',
            f'<text x="{MARGIN + 14}" y="{y + 41}" font-size="15" fill="#333333">{escape(purpose)}</text>',
        ]
    y = MARGIN + below * (ROW + GAP) + 14
    lines += [
        f'<line x1="{MARGIN}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#a02020" stroke-dasharray="8 5"/>',
        f'<text x="{WIDTH - MARGIN}" y="{y + 18}" font-size="14" text-anchor="end" fill="#a02020">'
        "below this line nothing knows transformers</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PICTURE.write_text(picture())
    else:
        print(picture(), end="")
