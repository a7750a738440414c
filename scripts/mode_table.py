"""Writes docs/modes.md: runs every fast test in tests/modes and keeps what those that passed have shown.

python scripts/mode_table.py            # run them and write the table
python scripts/mode_table.py --check    # run nothing: is the committed table that of the tests' markers?
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "modes.md"


def tests(page: Path, *options: str) -> int:
    """Run (or only collect) the tests; the table goes to `page`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/modes",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    return subprocess.run([*command, "--modes-table", str(page), *options], cwd=ROOT).returncode


def claimed() -> str:
    """The table if every marked test passed."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "modes.md"
        code = tests(page, "--collect-only", "-qq")
        if code:
            raise SystemExit(code)
        return page.read_text()


def main() -> int:
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != claimed():
            print(f"{PAGE.relative_to(ROOT)} is not what the tests show: run python scripts/mode_table.py")
            return 1
        return 0
    return tests(PAGE)


if __name__ == "__main__":
    sys.exit(main())
