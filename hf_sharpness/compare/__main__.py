"""`python -m hf_sharpness.compare`, which is `hf-sharpness compare`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
