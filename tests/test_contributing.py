"""The files for contributors name what is there, and agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import hf_sharpness

ROOT = Path(__file__).resolve().parents[1]
HOME = "https://github.com/hf-sharpness/hf_sharpness"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "README.md", "tests/README.md"])
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


def test_the_hooks_have_the_versions_of_ci() -> None:
    pinned = set((ROOT / "constraints.txt").read_text().split())
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in settings["repos"] for hook in repo["hooks"]]
    wanted = {requirement for hook in hooks for requirement in hook.get("additional_dependencies", [])}
    assert wanted
    assert wanted <= pinned
    named = {word for hook in hooks for word in hook["entry"].split() if word.startswith("tests/")}
    assert named
    assert all((ROOT / name).exists() for name in named)


def test_the_workflows_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            named |= {*matrix.get("target", []), *(entry["target"] for entry in matrix.get("include", []))}
            for step in job["steps"]:
                for words in re.findall(r"make ([a-z -]+)$", step.get("run", ""), re.M):
                    named |= set(words.split())
    assert {"docs", "test", "test-oldest", "test-newest"} <= named
    assert named <= targets


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hf_sharpness.__version__
    assert citation["repository-code"] == HOME
    cited = {reference["url"].removeprefix("https://arxiv.org/abs/") for reference in citation["references"]}
    from hf_sharpness.methods.sam import ASAM

    assert cited == {cls.paper for cls in hf_sharpness.methods.METHODS.values()} | ASAM.keys()


def test_the_changelog_has_the_sections_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (.*)$", text, re.M)
    assert all(re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases)
    assert releases[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for release in re.split(r"^## ", text, flags=re.M)[1:]:
        sections = re.findall(r"^### (.*)$", release, re.M)
        assert set(sections) <= kinds
        assert len(set(sections)) == len(sections)
