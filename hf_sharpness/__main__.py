"""`python -m hf_sharpness` is the `hf-sharpness` command."""

import sys

from hf_sharpness.cli import main

if __name__ == "__main__":
    sys.exit(main())
