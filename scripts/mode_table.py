"""Writes docs/modes.md and the README's short table: runs every test in tests/modes and keeps what has been shown.

python scripts/mode_table.py            # run them, the slow ones too, and write the tables of those that passed
python scripts/mode_table.py --check    # run nothing: are the committed tables those of the tests' markers?

To be run where DeepSpeed is installed (the environment of `make test-deepspeed`): a test that is skipped shows nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "modes.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- modes: begin -->", "<!-- modes: end -->"
PYTEST = ("pytest", "tests/modes", "-q", "-m", "", "-p", "no:cacheprovider", "-p", "no:xdist")


def tables(*options: str) -> tuple[int, str, str]:
    """Run (or only collect) the tests. Returns pytest's exit code, the page, and the README with the short table."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "modes.md")
        done = subprocess.run([sys.executable, "-m", *PYTEST, "--modes-table", str(page), *options], cwd=ROOT)
        if not page.exists():
            raise SystemExit(done.returncode)
        head, rest = README.read_text().split(BEGIN)
        readme = f"{head}{BEGIN}\n{page.with_suffix('.brief').read_text()}{END}{rest.split(END)[1]}"
        return done.returncode, page.read_text(), readme


def main() -> int:
    if "--check" in sys.argv:
        code, page, readme = tables("--collect-only", "-qq")
        if code or PAGE.read_text() != page or README.read_text() != readme:
            print("docs/modes.md or README.md is not what the tests show: run python scripts/mode_table.py")
            return 1
        return 0
    code, page, readme = tables()
    PAGE.write_text(page)
    README.write_text(readme)
    return code


if __name__ == "__main__":
    sys.exit(main())
