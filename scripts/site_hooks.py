"""What mkdocs needs beside docs/: pages out of README.md and the notebook; links that leave docs/ to the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(!?\[[^\]]*\])\((?![a-z]+:|#|/)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """The first page is the README, with links as they are from docs/; the notebook is a page too."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def inside(match: re.Match[str]) -> str:
        target = match[2]
        return f"{match[1]}({target.removeprefix('docs/') if target.startswith('docs/') else '../' + target})"

    files.append(File.generated(config, "index.md", content=LINK.sub(inside, text)))
    files.append(File.generated(config, "notebook.md", content=notebook()))
    return files


def notebook() -> str:
    """docs/notebook.ipynb as a page, with the outputs that it was committed with."""
    parts = []
    for cell in json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```{'bash' if source.startswith('!') else 'python'}\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"`````text\n{''.join(output['text']).rstrip()}\n`````")
            elif "image/png" in output.get("data", {}):
                png = "".join(output["data"]["image/png"]).replace("\n", "")
                parts.append(f'<img alt="What the cell draws" width="600" src="data:image/png;base64,{png}">')
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside of docs/, and to folders and data within, lead to the repository."""
    here = Path(page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        whole = (DOCS / here / path).resolve()
        if whole == DOCS / "notebook.ipynb":
            return f"{match[1]}({path.replace('.ipynb', '.md')}{mark}{anchor})"
        published = whole.is_relative_to(DOCS) and whole.suffix in (".md", ".png", ".svg")
        if published or not whole.exists():  # what does not exist is for mkdocs to complain of
            return match[0]
        kind = "tree" if whole.is_dir() else "blob"
        return f"{match[1]}({config.extra['repository']}/{kind}/main/{whole.relative_to(ROOT)}{mark}{anchor})"

    return LINK.sub(outside, markdown)
