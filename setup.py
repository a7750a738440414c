"""The package page: README.md with links that lead to the repository. All else is in setup.cfg."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / "setup.cfg", encoding="utf-8")
files = f"{config['metadata']['url']}/blob/main/"
raw = f"{config['metadata']['url']}/raw/main/"


def absolute(match: re.Match[str]) -> str:
    return f"{match[1]}({raw if match[1].startswith('!') else files}{match[2]})"


text = (here / "README.md").read_text(encoding="utf-8")
setup(long_description=re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)", absolute, text))
