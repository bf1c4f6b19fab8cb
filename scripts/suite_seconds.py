"""How long the tests take: runs `make test` and `make thorough`, and states the seconds in docs/performance.md.

python scripts/suite_seconds.py [--write docs/performance.md]

The machine should be idle otherwise. Exit code: pytest's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from unlearnbench.reports.export import markdown_table
from unlearnbench.storage.atomic import write_text

COMMAND = ("-m", "pytest", "-n", "auto", "--dist", "worksteal", "-m")
TARGETS = {"make test": ("not thorough", "<= 300"), "make thorough": ("thorough", "")}
HEADING = "## The test suite"


def sections(page: str) -> str:
    """The sections of a page, from its first heading of the second level on, with an empty line before them."""
    return page[page.index("\n## ") :] if "\n## " in page else ""


def write_section(path: Path, heading: str, text: str) -> None:
    """Replace a section of a page, or append it."""
    page = path.read_text(encoding="utf-8")
    parts = page.split("\n## ")
    parts = [part for part in parts if part.partition("\n")[0] != heading.removeprefix("## ")]
    write_text(path, "\n## ".join([*(part.rstrip() + "\n" for part in parts), f"{heading[3:]}\n\n{text.rstrip()}\n"]))
    print(f"wrote {path}")


def measure(marks: str) -> tuple[int, str, float, float]:
    """Run the tests with these marks; returns the exit code, pytest's last line, the seconds, and all CPU seconds."""
    import resource  # which Windows does not have

    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = ""
    with subprocess.Popen([sys.executable, *COMMAND, marks], stdout=subprocess.PIPE, text=True) as suite:
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
    rows, codes = [], []
    for target, (marks, goal) in TARGETS.items():
        code, summary, seconds, cpu = measure(marks)
        tests = re.sub(r" in [\d.]+s.*|, \d+ deselected|=", "", summary).strip()
        rows.append([f"`{target}`", tests, f"{seconds:.0f}", goal, f"{cpu:.0f}", f"{os.cpu_count()} ({platform.machine()})"])
        codes.append(code)
    table = markdown_table(["command", "tests", "seconds", "goal", "CPU seconds", "cores"], rows)
    write_section(options.write, HEADING, f"Made by `make test-seconds`.\n\n{table}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
