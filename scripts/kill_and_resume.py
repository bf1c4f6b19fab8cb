"""Kill runs at random moments, take them up again, and compare each with the run that was never stopped, byte by byte.

python scripts/kill_and_resume.py [--kills 100] [--seed 0] [--only ga,surgery]

Every run is a process that ends by SIGKILL from outside, after a time drawn evenly between its start and its end; the
second try is killed too, one time in three. It is taken up again by `unlearnbench resume FOLDER` or by the same words with
resume=true, by turns. Tiny model, a cache of its own for each run, one thread.
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
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import lpips  # noqa: F401  what a run imports is imported once, here, and not by each of its processes
import torch
from diffusers import StableDiffusionPipeline  # noqa: F401
from rich.console import Console
from rich.table import Table
from transformers import CLIPModel, CLIPTextModel  # noqa: F401

from unlearnbench.cli.main import main as command_line
from unlearnbench.console import progress_bar
from unlearnbench.data.images import Images
from unlearnbench.experiment.run_folder import LOCK
from unlearnbench.models.tiny import make_pipeline
from unlearnbench.results.run import load_run

ALGOS = {
    "ga": [], "surgery": [], "uce": [], "eupmu": [], "substitute": ["algo.rank=2"], "saddle": [], "sld": [],
    "receler": ["algo.attack_steps=2", "algo.sample_steps=4"], "esd_x": ["algo.sample_steps=4"], "salun": [], "mace": [],
    "in turn": ["algo=ga", "concept=[church,parachute]", "concept.continual=true"],
}  # fmt: skip
WORDS = ["experiment=smoke", "algo.steps=6", "checkpoint_every=0", "sample.batch=8"]
TIMES = ("seconds", "total_seconds", "peak_memory_mb")


def words_of(algo: str, folder: Path) -> list[str]:
    """The words of one run."""
    chosen = [] if algo == "in turn" else [f"algo={algo}"]
    return [*WORDS, *chosen, *ALGOS[algo], f"cache={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}"]


def start(words: Sequence[str], log: Path) -> int:
    """A process that does the command; what it prints goes to `log`."""
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


def ended(child: int, within: float | None = None) -> int | None:
    """The exit code of a process; None if it was killed, after so many seconds."""
    began = time.monotonic()
    while within is not None and time.monotonic() - began < within:
        if os.waitpid(child, os.WNOHANG)[0]:
            return 0
        time.sleep(0.002)
    if within is not None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def result(folder: Path) -> dict[str, object]:
    """All that a run made, less what is measured in seconds or megabytes of the process."""
    made: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".safetensors", ".jsonl") or path.name == "per_image.json":
            made[str(path.relative_to(folder))] = path.read_bytes()
    made["metrics.json"] = [v for v in json.loads((folder / "metrics.json").read_text()) if v["metric"] not in TIMES]
    made["train.csv"] = [row[:2] for row in csv.reader((folder / "train.csv").open())]
    return made


def stage(folder: Path) -> str:
    """How far a killed run had come."""
    if not (folder / "run.json").is_file():
        return "before run.json"
    log = load_run(folder).log
    if log["status"] == "done":
        return "after the end"
    sampled = {side: len(Images(folder / "images" / side)) for side in ("before", "after")}
    rows = len((folder / "train.csv").read_text().splitlines()) - 1 if (folder / "train.csv").is_file() else -1
    if "fingerprint" not in log:
        return "load"
    if not log.get("unlearned"):
        return f"unlearn, step {rows}" if rows > 0 else f"sample original, {sampled['before']}" if rows < 0 else "begin"
    if (folder / "metrics.json").is_file():
        return "measure"
    return f"sample unlearned, {sampled['after']}"


def leftovers(folder: Path) -> list[str]:
    """Files that should not be there once a run is done."""
    names = [path.name for path in folder.rglob("*")]
    return [name for name in names if name.startswith(".") or name in (LOCK, "training.safetensors", "error.txt")]


def kill(number: int, algo: str, folder: Path, seconds: float, draw: random.Random, right: dict[str, object]) -> list[str]:
    """Kill one run, take it up again, compare; returns the row of the table."""
    run, log = folder / "run", folder / "log.txt"
    moments: list[float] = []
    stages: list[str] = []
    while not moments:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        moment = draw.uniform(0, seconds)
        if ended(start(["run", *words_of(algo, folder)], log), moment) is None:
            moments, stages = [moment], [stage(run)]

    def again() -> list[str]:
        known = (run / "run.json").is_file()
        return ["resume", str(run)] if number % 2 and known else ["run", *words_of(algo, folder), "resume=true"]

    if draw.random() < 1 / 3:
        moment = draw.uniform(0, seconds)
        if ended(start(again(), log), moment) is None:
            moments, stages = [*moments, moment], [*stages, stage(run)]
    by = "resume" if again()[0] == "resume" else "resume=true"
    code = ended(start(again(), log))
    if code:
        told = f"exit {code}"
    elif extra := leftovers(run):
        told = f"left: {', '.join(extra)}"
    else:
        found = result(run)
        wrong = [name for name in right.keys() | found.keys() if right.get(name) != found.get(name)]
        told = f"differs: {', '.join(sorted(wrong)[:3])}" if wrong else "equal"
    if told == "equal":
        shutil.rmtree(folder)
    return [str(number), algo, ", ".join(f"{m:.1f} s" for m in moments), "; ".join(stages), by, told]


def main() -> int:
    """Print the table; exit 1 if a run did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(ALGOS), help="algorithms, by turns")
    known = parser.parse_args()
    torch.set_num_threads(1)
    make_pipeline()
    work, draw, algos = Path(tempfile.mkdtemp(prefix="torture-")), random.Random(known.seed), known.only.split(",")
    print(f"works in {work}")
    os.chdir(work)
    right: dict[str, tuple[float, dict[str, object]]] = {}
    rows = []
    with progress_bar("kill", known.kills) as shown:
        for number in range(1, known.kills + 1):
            algo = algos[(number - 1) % len(algos)]
            if algo not in right:
                folder, began = Path("whole") / algo.replace(" ", "-"), time.monotonic()
                folder.mkdir(parents=True)
                if code := ended(start(["run", *words_of(algo, folder)], folder / "log.txt")):
                    print((folder / "log.txt").read_text(), file=sys.stderr)
                    return code
                right[algo] = time.monotonic() - began, result(folder / "run")
            rows.append(kill(number, algo, Path(str(number)), right[algo][0], draw, right[algo][1]))
            shown.advance(remark=rows[-1][-1])
    table = Table("kill", "algorithm", "killed after", "while", "taken up by", "result", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    survived = sum(row[-1] == "equal" for row in rows)
    print(f"{survived} of {len(rows)} killed runs ended as the run that was never stopped")
    if survived == len(rows):
        shutil.rmtree(work)
    return 0 if survived == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
