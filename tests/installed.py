"""What pip leaves of a package of one module, as far as entry points go: they work in the tests without pip."""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path


def install(package: Path, site: Path) -> None:
    """Put a package's module, and its entry points as `setup.cfg` has them, into a folder for the path."""
    setup = configparser.ConfigParser()
    setup.read(package / "setup.cfg")
    name, version = setup["metadata"]["name"], setup["metadata"]["version"]
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = setup["options.entry_points"].items()
    info.joinpath("entry_points.txt").write_text("".join(f"[{group}]{lines}\n" for group, lines in groups))
    shutil.copy(package / f"{setup['options']['py_modules']}.py", site)
