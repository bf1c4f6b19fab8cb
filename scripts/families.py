"""Every algorithm on a tiny random pipeline of every family, each by `unlearnbench run`: docs/families-runs.md.

python scripts/families.py [--models sdxl,flux] [--algos ga,uce] [--device cpu] [--jobs 1] [--write docs/families-runs.md]

A pipeline is built in code, saved in diffusers' layout and given as `model.path`; every count in an algorithm's settings is
cut to at most 3. If `check` reports that an algorithm cannot run on a family, the run is started nevertheless and must end
with that line. Exit 1 if a run ended otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}
import diffusers
import torch
import transformers
from reduced_counts import COUNT, reduced_counts
from stored_runs import process_map

from unlearnbench.cli.main import main as command_line
from unlearnbench.config.compose import compose
from unlearnbench.config.paths import choices
from unlearnbench.console import progress_bar
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline
from unlearnbench.reports.comparison import first_value
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.run import load_run
from unlearnbench.storage.atomic import write_text

MODELS = {"sd14": "sd15", "sd15": "sd15", "sd21": "sd21", "sdxl": "sdxl", "sd3": "sd3", "sd35": "sd3", "flux": "flux"}
T5_FAMILIES = ("sd3", "sd35", "flux")  # their number of T5 tokens is a setting
FEW = (
    "model.domain=pictoworld", "model.size=32", "model.steps=3", "model.guidance=2.0", "model.dtype=fp32", "concept=church",
    "metrics=integrity", "retain.splits=[far]", "sample.prompts=1", "sample.per_prompt=1",
)  # fmt: skip


def run_overrides(model: str, algo: str, folder: Path, weights: Path) -> list[str]:
    """The overrides of one run.

    Args:
        model: the family.
        algo: the algorithm.
        folder: the pipeline.
        weights: what `oracle` loads.
    """
    config = compose(f"algo={algo}", f"model={model}").algo
    oracle = [f"algo.weights={weights}"] if "weights" in config else []
    tokens = ["model.tokens=8"] if model in T5_FAMILIES else []
    return [f"model={model}", f"model.path={folder}", f"algo={algo}", *FEW, *tokens, *reduced_counts(config), *oracle]


def command(words: Sequence[str]) -> tuple[int, str]:
    """`unlearnbench` with these words, in this process: its exit code and its standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            code = command_line(list(words))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, errors.getvalue()


def outcome(overrides: Sequence[str], folder: Path) -> str:
    """How one run ended: "done", "no cfg" (refused with the reason that `check` gives), or what went wrong, in capitals."""
    code, errors = command(["run", *overrides, f"hydra.run.dir={folder}"])
    spec = RunSpec.of(compose(*overrides))
    if reason := spec.algo.unavailable_reason(spec.model):
        absent = ", ".join(sorted(spec.algo.requires() - spec.model.capabilities))
        refused = code == 2 and errors.startswith(f"error: {reason}") and not (folder / "run.json").exists()
        return f"no {absent}" if refused else f"NOT REFUSED: exit {code}"
    if code or not (folder / "run.json").is_file():
        return f"FAILED: exit {code}: {errors.strip().splitlines()[-1:]}"
    run = load_run(folder)
    measured = first_value(run, "integrity", "retain") is not None and (folder / "tables.md").is_file()
    return "done" if run.log["status"] == "done" and measured else f"FAILED: {run.log['status']}"


def outcomes(model: str, algos: Sequence[str], device: str) -> dict[str, str]:
    """How every algorithm's run ended on one family.

    Raises:
        RuntimeError: the first run, which writes the weights for `oracle`, failed.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    by_algo = {}
    with tempfile.TemporaryDirectory() as name, progress_bar(model, len(algos)) as bar:
        work = Path(name)
        folder, weights = work / model, work / "other.safetensors"
        make_tiny_pipeline(MODELS[model]).save_pretrained(folder, safe_serialization=True)
        places = [f"cache={work / 'cache'}", f"device={device}"]
        first = ["run", *run_overrides(model, "noise", folder, weights), *places, f"hydra.run.dir={work / 'other'}"]
        code, errors = command(first)
        if code:
            raise RuntimeError(errors)
        (work / "other" / "weights.safetensors").rename(weights)
        for algo in algos:
            by_algo[algo] = outcome([*run_overrides(model, algo, folder, weights), *places], work / algo)
            bar.advance(remark=f"{algo}: {by_algo[algo]}")
    return by_algo


def main() -> int:
    """Run all, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--algos", default=",".join(choices("algo")))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time, each in its own process")
    parser.add_argument("--write", type=Path, default=Path("docs/families-runs.md"))
    options = parser.parse_args()
    models, algos = options.models.split(","), options.algos.split(",")
    where = torch.cuda.get_device_name(device) if (device := select_device(options.device)).type == "cuda" else "a CPU"
    with process_map(options.jobs) as mapped:
        by_model = list(mapped(outcomes, models, repeat(algos), repeat(options.device)))
    by_algo = {algo: {model: ends[algo] for model, ends in zip(models, by_model, strict=True)} for algo in algos}
    ends = [end for row in by_algo.values() for end in row.values()]
    done, wrong = ends.count("done"), [end for end in ends if end[:1].isupper()]
    left_out = ", ".join(name for name in choices("algo") if name not in algos)
    lines = [
        "# Algorithms by family",
        "",
        "Made by `make families`: tiny random pipelines made by code, saved in diffusers' layout, each run by `unlearnbench run",
        f"model=... model.path=FOLDER algo=...`, at most {COUNT} steps, on {where} (torch {torch.__version__.partition('+')[0]},",
        f"diffusers {diffusers.__version__}, transformers {transformers.__version__}). done: unlearned, sampled, measured, its",
        "tables written; no ...: refused before any work, for what the family does not have ([families.md](families.md)).",
        f"{done} done, {len(ends) - done - len(wrong)} refused, {len(wrong)} failed. It shows that the code runs, not that",
        "settings are good." + (f" Without a row: {left_out}." if left_out else ""),
        "",
        markdown_table(["algo", *models], [[algo, *row.values()] for algo, row in by_algo.items()]),
    ]
    write_text(options.write, "\n".join(lines).rstrip() + "\n")
    print(f"wrote {options.write}: {done} done, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
