"""`python -m unlearnbench.cli`, the same as `python -m unlearnbench`."""

from __future__ import annotations

import sys

from unlearnbench.cli.main import main

sys.exit(main())
