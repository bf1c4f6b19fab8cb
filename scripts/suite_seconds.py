"""How long the test suite takes: runs it as `make test` does, and states the seconds in docs/performance.md.

python scripts/suite_seconds.py [--write docs/performance.md]

The machine should be idle otherwise. Exit code: pytest's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from unlearnbench.reports.export import markdown_table
from unlearnbench.storage.atomic import write_text

COMMAND = ("-m", "pytest", "-n", "auto", "--dist", "worksteal")
HEADING = "## The test suite"


def section(page: str) -> str:
    """The part of a page about the test suite, with an empty line before it; empty if it has none."""
    return page[page.index(f"\n{HEADING}") :] if HEADING in page else ""


def measure() -> tuple[int, str, float, float]:
    """Run the suite; returns its exit code, pytest's last line, the seconds, and the CPU seconds of all its processes."""
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = ""
    with subprocess.Popen([sys.executable, *COMMAND], stdout=subprocess.PIPE, text=True) as suite:
        for line in suite.stdout or ():
            print(line, end="", flush=True)
            summary = line.strip() or summary
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return suite.returncode, summary, time.perf_counter() - began, cpu


def main() -> int:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    code, summary, seconds, cpu = measure()
    tests = re.sub(r" in [\d.]+s.*|=", "", summary).strip()
    rows = [[tests, f"{seconds:.0f}", "<= 300", f"{cpu:.0f}", f"{os.cpu_count()} ({platform.machine()})"]]
    table = markdown_table(["tests", "seconds", "goal", "CPU seconds", "cores"], rows)
    page = options.write.read_text(encoding="utf-8")
    page = page.removesuffix(section(page)).rstrip()
    write_text(options.write, f"{page}\n\n{HEADING}\n\nMade by `make test-seconds`, which runs what `make test` runs.\n\n{table}")
    print(f"wrote {options.write}")
    return code


if __name__ == "__main__":
    sys.exit(main())
