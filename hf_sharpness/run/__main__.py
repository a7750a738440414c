"""`python -m hf_sharpness.run`, which launchers can start too."""

import sys

from .command import main

sys.exit(main())
