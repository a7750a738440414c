"""The documentation's site builds strictly, its links and pictures lead somewhere, nothing comes from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HOME = "https://github.com/hf-sharpness/hf_sharpness/"


class Page(HTMLParser):
    """What a page of the site points to, and what can be pointed to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe", "source", "video") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel", "") in ("stylesheet", "icon", "preload", "modulepreload"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 30
    return found


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(HOME) and ("/blob/main/" in link or "/tree/main/" in link):
                inside = link.split("/main/", 1)[1].split("#")[0]
                if not (ROOT / inside).exists():
                    broken.append((path.name, link))
                continue
            parts = urlsplit(link)
            if parts.scheme or not link:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            ):
                broken.append((path.name, link))
    assert not broken


def test_pictures_scripts_and_styles_are_of_the_site_itself(pages: dict[Path, Page]) -> None:
    pictures = 0
    for path, page in pages.items():
        for load in page.loads:
            if load.startswith("data:image/png;base64,"):
                continue
            assert not urlsplit(load).scheme, f"{path.name} loads {load}"
            assert not load.startswith("//"), f"{path.name} loads {load}"
            assert (path.parent / unquote(urlsplit(load).path)).exists(), f"{path.name} misses {load}"
            pictures += load.endswith((".png", ".svg"))
    assert pictures


def test_every_page_is_in_the_navigation() -> None:
    def paths(entry: object) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        values = entry.values() if isinstance(entry, dict) else entry
        return set().union(*(paths(value) for value in values))

    shown = paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert written - shown == set(), "pages that mkdocs.yml does not list"


def test_the_api_page_shows_signatures_and_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text()
    for words in ("SharpnessTrainerMixin", "Total length of the ascent step", "climb_along"):
        assert words in text
