"""`python -m anchor_robust` is the command `anchor`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
