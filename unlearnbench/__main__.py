"""`python -m unlearnbench`, the same as the command `unlearnbench`."""

from __future__ import annotations

import sys

from unlearnbench.cli.main import main

sys.exit(main())
