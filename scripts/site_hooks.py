"""What mkdocs needs beside docs/: the first page out of README.md, and links that leave docs/ to the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?\[[^\]]*\])\((?![a-z]+:|#|/)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """The first page is the README, with links as they are from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def inside(match: re.Match[str]) -> str:
        target = match[2]
        return f"{match[1]}({target.removeprefix('docs/') if target.startswith('docs/') else '../' + target})"

    files.append(File.generated(config, "index.md", content=LINK.sub(inside, text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside of docs/, and to folders and data within, lead to the repository."""
    here = Path(page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        whole = (ROOT / "docs" / here / path).resolve()
        published = whole.is_relative_to(ROOT / "docs") and whole.suffix in (".md", ".png", ".svg", ".ipynb")
        if published or not whole.exists():  # what does not exist is for mkdocs to complain of
            return match[0]
        kind = "tree" if whole.is_dir() else "blob"
        return f"{match[1]}({config.extra['repository']}/{kind}/main/{whole.relative_to(ROOT)}{mark}{anchor})"

    return LINK.sub(outside, markdown)
