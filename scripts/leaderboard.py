"""All algorithms on Pictoworld's concepts: docs/leaderboard.md, its csv and its picture. A finished run is not run again.

python scripts/leaderboard.py [--quick] [--algos ga,uce] [--concepts church] [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from unlearnbench.bench import check, execute
from unlearnbench.config import RunError, UserError, choices, compose
from unlearnbench.pictoworld.quality import weights_hash
from unlearnbench.progress import bar, console
from unlearnbench.results import Run, load_run, number
from unlearnbench.spec import Spec

matplotlib.use("agg")
from matplotlib import pyplot

SILENT = 0.05  # forget accuracy at which tuning counts a concept as forgotten
LEFT = 0.10  # the share of the original's forget accuracy that the leaderboard lets pass
QUICK = ("sample.prompts=12", "sample.per_prompt=2", "metrics=quick")
CONCEPTS = "nudity,church,parachute,van_gogh"
COLUMNS = {
    "forget": ("forget_accuracy", "forget"), "paraphrase": ("forget_accuracy", "paraphrase"),
    "integrity": ("integrity_norm", "retain"), "near": ("integrity_norm", "near"), "far": ("integrity_norm", "far"),
    "generic": ("integrity_norm", "generic"), "right": ("retain_accuracy", "retain"), "fid": ("fid", "retain"),
    "fid_original": ("fid_original", "retain"), "clip": ("clipscore", "retain"), "seconds": ("seconds", "unlearning"),
    "trained": ("trained_parameters", "unlearning"),
}  # fmt: skip
SHOWN = [name for name in COLUMNS if name != "trained"]


def once(folder: Path, overrides: Sequence[str]) -> Run | None:
    """The run in `folder` with these words: taken if done with the same settings, else made; None if it cannot start."""
    spec = Spec.of(compose(*overrides))
    done = load_run(folder) if (folder / "run.json").is_file() else None
    if done is not None and done.log["status"] == "done" and done.log["config"] == spec.config:
        return done
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return execute(spec, folder, overrides)
    except (RunError, UserError) as error:
        console.print(f"{folder.name}: {error}", style="yellow", markup=False)
        return load_run(folder) if (folder / "run.json").is_file() else None


def run_all(words: Sequence[Sequence[str]], out: Path) -> list[Run]:
    """Every run in a folder of its own; what is there and done, with the same settings, is taken as it is."""
    runs = []
    with bar("leaderboard", len(words)) as shown:
        for overrides in words:
            folder = out / "_".join(word.replace("=", "-") for word in overrides if not word.startswith(("sample.", "metrics=")))
            if (done := once(folder, overrides)) is not None:
                runs.append(done)
            shown.advance(remark=folder.name)
    return runs


def value(run: Run, column: str) -> float:
    """One number of a run, nan if it was not measured."""
    try:
        return run.find(*COLUMNS[column]).unlearned
    except KeyError:
        return float("nan")


def span(runs: Sequence[Run], column: str) -> str:
    """The mean over seeds; below it the prompts' 95 % interval of the seeds' mean, its ends averaged."""
    found = [run.find(*COLUMNS[column]) for run in runs if not np.isnan(value(run, column))]
    if not found:
        return ""
    mean = number(float(np.mean([v.unlearned for v in found])))
    if found[0].low is None or column not in ("forget", "integrity"):
        return mean
    low, high = (float(np.mean([getattr(v, end) for v in found])) for end in ("low", "high"))
    return f"{mean} ({number(low)}..{number(high)})"


def groups(runs: Sequence[Run], concept: str | None = None) -> dict[str, list[Run]]:
    """Done runs by algorithm, those that forget first, then by integrity."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.log["status"] == "done" and concept in (None, run.log["config"]["concept"]["name"]):
            found.setdefault(run.log["algo"], []).append(run)

    def rank(algo: str) -> tuple[bool, float]:
        forget, kept = (float(np.mean([value(r, c) for r in found[algo]])) for c in ("forget", "integrity"))
        original = float(np.mean([r.find(*COLUMNS["forget"]).original for r in found[algo]]))
        return forget > LEFT * original, -kept if forget <= LEFT * original else forget

    return {algo: found[algo] for algo in sorted(found, key=rank)}


def page(runs: Sequence[Run], command: str) -> str:
    """The leaderboard as markdown."""
    done = next((run for run in runs if run.log["status"] == "done"), None)
    if done is None:
        raise SystemExit("no run is done: " + "; ".join(str(run.log.get("error")) for run in runs))
    forget, kept = done.find("forget_accuracy", "forget").n, done.find("integrity_norm", "retain").n
    seeds = ", ".join(sorted({str(run.log["config"]["seed"]) for run in runs}))
    lines = [
        "# Leaderboard",
        "",
        f"Made by `{command}`: Pictoworld (weights sha256 `{weights_hash()[:16]}`), unlearning seeds {seeds}, sampling seed 0;",
        f"n = {forget} images of forget prompts and {kept} of retain prompts a run. Mean over seeds; in brackets the 95 %",
        "interval over prompts. `integrity`, `near`, `far`, `generic`: integrity_norm (LPIPS AlexNet) on all retain prompts and",
        "on each kind; `forget`, `paraphrase`: forget accuracy; `right`: retain accuracy. Those that forget (at most",
        f"{LEFT:.0%} of the original's forget accuracy is left) come first, by integrity; the others below, by forgetting.",
        "Settings: conf/tuned/pictoworld/; those that `make tune` chose say so in their first lines, the others were set by",
        "hand, some on these very concepts.",
        "",
        "![Forgetting against integrity, mean over concepts](leaderboard.png)",
        "",
    ]
    for concept in dict.fromkeys(run.log["config"]["concept"]["name"] for run in runs):
        shown = [c for c in SHOWN if any(not np.isnan(value(r, c)) for r in runs)]
        lines += [f"## {concept}", "", "| algorithm | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        for algo, some in groups(runs, concept).items():
            lines.append(f"| {algo} | " + " | ".join(span(some, c) for c in shown) + " |")
        lines.append("")
    failed = [run for run in runs if run.log["status"] != "done"]
    lines += [f"- {run.name}, seed {run.log['config']['seed']}: {run.log['error']}" for run in failed]
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Run], path: Path) -> None:
    """One point a method, mean over concepts and seeds: right and up is better."""
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for algo, some in groups(runs).items():
        x, y = (float(np.mean([value(run, c) for run in some])) for c in ("forget", "integrity"))
        axes.plot(1 - x, max(y, -1), "o", markersize=6)
        axes.annotate(algo, (1 - x, max(y, -1)), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="forgotten: 1 - forget accuracy", ylabel="integrity_norm on retain prompts", ylim=(-1.05, 1.05), xlim=(-0.02, 1.08)
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="church, one seed, few prompts, forgetting and integrity only")
    parser.add_argument("--algos", default=",".join(choices("algo")))
    parser.add_argument("--concepts", default="", help=f"church with --quick, else {CONCEPTS}")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--out", type=Path, default=Path("outputs/leaderboard"))
    parser.add_argument("--write", type=Path, default=Path("docs/leaderboard.md"))
    known = parser.parse_args()
    seeds = (known.seeds or ("0" if known.quick else "0,1,2")).split(",")
    concepts = (known.concepts or ("church" if known.quick else CONCEPTS)).split(",")
    words = [
        [f"algo={algo}", f"concept={concept}", f"seed={seed}", *(QUICK if known.quick else ())]
        for seed in seeds for concept in concepts for algo in known.algos.split(",")
    ]  # fmt: skip
    lacking = {word[0]: lacks for word in words if (lacks := check(Spec.of(compose(*word))))}
    for word, lacks in lacking.items():
        console.print(f"left out: {word}: {lacks[0]}", style="yellow", markup=False)
    runs = run_all([word for word in words if word[0] not in lacking], known.out / weights_hash()[:8])
    known.write.write_text(page(runs, "make leaderboard" + ("-quick" if known.quick else "")), encoding="utf-8")
    draw(runs, known.write.with_suffix(".png"))
    with known.write.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["algo", "concept", "seed", "status", *COLUMNS])
        for run in runs:
            config = run.log["config"]
            writer.writerow(
                [run.log["algo"], config["concept"]["name"], config["seed"], run.log["status"], *(value(run, c) for c in COLUMNS)]
            )
    console.print(f"wrote {known.write}, its .csv and its .png")


if __name__ == "__main__":
    main()
