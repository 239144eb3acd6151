"""`python -m recgrela.data stats|convert|get`; see `recgrela.datasets`."""

from __future__ import annotations

import sys

from recgrela.datasets.command import main

if __name__ == "__main__":
    sys.exit(main())
