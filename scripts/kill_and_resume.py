"""Kill runs at random times, resume them, and compare each with a run that was never stopped, byte by byte.

python scripts/kill_and_resume.py [--kills 100] [--seed 0] [--only ga,surgery]

Every run is a process that is killed by SIGKILL after a time drawn uniformly between its start and its end; one in three is
killed a second time after it was resumed. Odd runs are resumed by `unlearnbench resume FOLDER`, even ones by the same
overrides with resume=true. The model is tiny, each run has its own cache, and processes use one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import lpips  # noqa: F401  these imports are done once, before the fork, and not by each process
import torch
from diffusers import StableDiffusionPipeline  # noqa: F401
from rich.console import Console
from transformers import CLIPModel, CLIPTextModel  # noqa: F401

from unlearnbench.cli.main import main as command_line
from unlearnbench.console import progress_bar
from unlearnbench.console.tables import build_table
from unlearnbench.data.images import Images
from unlearnbench.models.tiny import make_pipeline
from unlearnbench.results.run import load_run
from unlearnbench.storage.lock import LOCK

ALGOS = {
    "ga": [], "surgery": [], "uce": [], "eupmu": [], "substitute": ["algo.rank=2"], "saddle": [], "sld": [],
    "receler": ["algo.attack_steps=2", "algo.sample_steps=4"], "esd_x": ["algo.sample_steps=4"], "salun": [], "mace": [],
    "in turn": ["algo=ga", "concept=[church,parachute]", "concept.continual=true"],
}  # fmt: skip
OVERRIDES = ["experiment=smoke", "algo.steps=6", "checkpoint_every=0", "sample.batch=8"]
COSTS = ("seconds", "total_seconds", "peak_memory_mb")  # metrics that differ from run to run
HEAD = ("kill", "algorithm", "killed after", "while", "resumed by", "result")
Result = dict[str, object]


def run_overrides(algo: str, folder: Path) -> list[str]:
    """The overrides of one run."""
    chosen = [] if algo == "in turn" else [f"algo={algo}"]
    return [*OVERRIDES, *chosen, *ALGOS[algo], f"cache={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}"]


def start(words: Sequence[str], log: Path) -> int:
    """Start a process that executes a command and prints to `log`; returns its id."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    code = 99
    try:
        code = command_line(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        os._exit(code)


def wait_or_kill(child: int, timeout: float | None = None) -> int | None:
    """The exit code of a process; None if it was killed, here after `timeout` seconds."""
    began = time.monotonic()
    while timeout is not None and time.monotonic() - began < timeout:
        if os.waitpid(child, os.WNOHANG)[0]:
            return 0
        time.sleep(0.002)
    if timeout is not None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def read_result(folder: Path) -> Result:
    """Everything that a run wrote and that must not differ, by file: all but seconds and memory."""
    result: Result = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".safetensors", ".jsonl") or path.name == "per_image.json":
            result[str(path.relative_to(folder))] = path.read_bytes()
    result["metrics.json"] = [v for v in json.loads((folder / "metrics.json").read_text()) if v["metric"] not in COSTS]
    result["train.csv"] = [row[:2] for row in csv.reader((folder / "train.csv").open())]
    return result


def stage(folder: Path) -> str:
    """What a killed run was doing."""
    if not (folder / "run.json").is_file():
        return "before run.json"
    log = load_run(folder).log
    if log["status"] == "done":
        return "after the end"
    images = {side: len(Images(folder / "images" / side)) for side in ("before", "after")}
    steps = len((folder / "train.csv").read_text().splitlines()) - 1 if (folder / "train.csv").is_file() else -1
    if "fingerprint" not in log:
        return "load"
    if not log.get("unlearned"):
        return f"unlearn, step {steps}" if steps > 0 else f"sample original, {images['before']}" if steps < 0 else "begin"
    if (folder / "metrics.json").is_file():
        return "measure"
    return f"sample unlearned, {images['after']}"


def leftovers(folder: Path) -> list[str]:
    """Files that should be gone once a run is done."""
    names = [path.name for path in folder.rglob("*")]
    return [name for name in names if name.startswith(".") or name in (LOCK, "training.safetensors", "error.txt")]


@dataclass
class KilledRun:
    """A run that is killed and resumed.

    Attributes:
        number: counted from 1.
        algo: which of `ALGOS`.
        folder: its working folder.
        seconds: how long the run takes when it is not stopped.
        random: draws the times of the kills.
        times: seconds after which it was killed.
        stages: what it was doing then.
    """

    number: int
    algo: str
    folder: Path
    seconds: float
    random: random.Random
    times: list[float] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    @property
    def log(self) -> Path:
        """Where its processes print."""
        return self.folder / "log.txt"

    def kill(self, words: Sequence[str]) -> None:
        """Start a command and kill it after a random time, unless it ends before."""
        time_of_kill = self.random.uniform(0, self.seconds)
        if wait_or_kill(start(words, self.log), time_of_kill) is None:
            self.times.append(time_of_kill)
            self.stages.append(stage(self.run))

    def resume_command(self) -> list[str]:
        """The command that resumes it."""
        if self.number % 2 and (self.run / "run.json").is_file():
            return ["resume", str(self.run)]
        return ["run", *run_overrides(self.algo, self.folder), "resume=true"]

    def check(self, expected: Result) -> list[str]:
        """Kill the run, resume it and compare the result; returns the row of the table, under `HEAD`."""
        while not self.times:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.kill(["run", *run_overrides(self.algo, self.folder)])
        if self.random.random() < 1 / 3:
            self.kill(self.resume_command())
        command = self.resume_command()
        verdict = self.verdict(wait_or_kill(start(command, self.log)), expected)
        if verdict == "equal":
            shutil.rmtree(self.folder)
        by, times = command[0] if command[0] == "resume" else "resume=true", ", ".join(f"{t:.1f} s" for t in self.times)
        return [str(self.number), self.algo, times, "; ".join(self.stages), by, verdict]

    def verdict(self, code: int | None, expected: Result) -> str:
        """Whether the resumed run equals the one that was never stopped."""
        if code:
            return f"exit {code}"
        if extra := leftovers(self.run):
            return f"left: {', '.join(extra)}"
        result = read_result(self.run)
        differing = [name for name in expected.keys() | result.keys() if expected.get(name) != result.get(name)]
        return f"differs: {', '.join(sorted(differing)[:3])}" if differing else "equal"


def uninterrupted(algo: str) -> tuple[float, Result]:
    """Seconds and result of a run that is not stopped.

    Raises:
        SystemExit: it failed.
    """
    folder, began = Path("whole") / algo.replace(" ", "-"), time.monotonic()
    folder.mkdir(parents=True)
    if code := wait_or_kill(start(["run", *run_overrides(algo, folder)], folder / "log.txt")):
        print((folder / "log.txt").read_text(), file=sys.stderr)
        raise SystemExit(code)
    return time.monotonic() - began, read_result(folder / "run")


def main() -> int:
    """Print the table; exit 1 if a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(ALGOS), help="algorithms, in turn")
    parser.add_argument("overrides", nargs="*", help="of every run, such as sample.prompts=1")
    options = parser.parse_args()
    OVERRIDES.extend(options.overrides)
    torch.set_num_threads(1)
    make_pipeline()
    work, draw, algos = Path(tempfile.mkdtemp(prefix="kill-")), random.Random(options.seed), options.only.split(",")
    print(f"works in {work}")
    os.chdir(work)
    whole: dict[str, tuple[float, Result]] = {}
    rows = []
    with progress_bar("kill", options.kills) as bar:
        for number in range(1, options.kills + 1):
            algo = algos[(number - 1) % len(algos)]
            if algo not in whole:
                whole[algo] = uninterrupted(algo)
            seconds, expected = whole[algo]
            rows.append(KilledRun(number, algo, Path(str(number)), seconds, draw).check(expected))
            bar.advance(remark=rows[-1][-1])
    Console(width=130).print(build_table(HEAD, rows, HEAD, wrapped=HEAD))
    equal = sum(row[-1] == "equal" for row in rows)
    print(f"{equal} of {len(rows)} killed runs ended as the run that was never stopped")
    if equal == len(rows):
        shutil.rmtree(work)
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
