"""`python -m anchor_robust` is the command `anchor`."""

import sys

from .cli import main

sys.exit(main())
