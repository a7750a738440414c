"""Writes recipes/RESULTS.md: the tables of all studies in docs/evidence, as `hf-sharpness compare` left them.

python scripts/results_page.py            # print it
python scripts/results_page.py --write    # write it
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE, PAGE = ROOT / "docs" / "evidence", ROOT / "recipes" / "RESULTS.md"

_HEAD = """\
# Results

Every study in [docs/evidence](../docs/evidence/README.md), whatever came out; made from their tables by
`python scripts/results_page.py --write`. Where a study was tuned its verdict is judged by the protocol of
[compare](../docs/compare.md); a sweep tunes nothing and has no verdict. Further measures of every arm, the tuning and
the splits are in the tables linked to.
"""


def study(folder: Path) -> str:
    """One study: what was decided, the table of its arms, and how to repeat it."""
    text = (folder / "table.md").read_text(encoding="utf-8")
    blocks = text.strip().split("\n\n")
    results = next(block for block in blocks if block.startswith("| arm | tuned setting"))
    verdicts = blocks[1] if blocks[1].startswith("* ") else "A sweep."
    kept = ("* command", "* date", "* label noise", "* splits", "* deviations", "* signature")
    protocol = [line for line in blocks[-1].splitlines() if line.startswith(kept)]
    where = f"[Table](../docs/evidence/{folder.name}/table.md), [picture](../docs/evidence/{folder.name}/compare.png)."
    return "\n\n".join([f"## {folder.name}", verdicts, results, "\n".join(protocol), where])


def page() -> str:
    """The whole page."""
    studies = [study(table.parent) for table in sorted(EVIDENCE.glob("*/table.md"))]
    further = [_further(EVIDENCE / name) for name in ("correlations.md", "toy/toy.md", "agreement/agreement.md")]
    picture = "![Trajectories and norms](../docs/evidence/toy/toy.png)"
    return "\n\n".join([_HEAD.rstrip(), *studies, *further, picture]) + "\n"


def _further(path: Path) -> str:
    """A page that is no study, its headings a level lower."""
    return path.read_text(encoding="utf-8").strip().replace("\n## ", "\n### ").replace("# ", "## ", 1)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())
