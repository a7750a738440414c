"""Writes docs/modes.md and docs/verified-modes.md: runs every test in tests/modes and keeps what has been shown.

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
PAGES = ("modes.md", "verified-modes.md")
PYTEST = ("pytest", "tests/modes", "-q", "-m", "", "-p", "no:cacheprovider", "-p", "no:xdist")


def pages(*options: str) -> tuple[int, dict[str, str]]:
    """Run (or only collect) the tests. Returns pytest's exit code, and the pages by their names in docs/."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", *PYTEST, "--modes-table", folder, *options], cwd=ROOT)
        if not all(Path(folder, name).exists() for name in PAGES):
            raise SystemExit(done.returncode)
        return done.returncode, {name: Path(folder, name).read_text() for name in PAGES}


def main() -> int:
    if "--check" in sys.argv:
        code, made = pages("--collect-only", "-qq")
        if code or any((ROOT / "docs" / name).read_text() != text for name, text in made.items()):
            print(f"docs/{' or docs/'.join(PAGES)} is not what the tests show: run python scripts/mode_table.py")
            return 1
        return 0
    code, made = pages()
    for name, text in made.items():
        (ROOT / "docs" / name).write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
