"""The variance of each number by source (unlearning seed, sampling seed, original model, prompts): docs/variance.md.

python scripts/variance.py [--algos redirect,mace] [--concept church] [--seeds 0,1,2] [--samplings 0,1,2]
    [--originals parachute,van_gogh]

An algorithm unlearns once for each unlearning seed. The weights of each are then sampled with each sampling seed (by
`algo=oracle algo.weights=...`, which only loads them), so every pair of seeds gives a number. By kind of seed it is the
standard deviation of the means over the other kind; by prompts, the half-width of a run's 95 % interval over 1.96, averaged
over all runs. Other original models are those retrained without another concept, the shipped oracles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from stored_runs import finished_run

from unlearnbench.console import console, progress_bar
from unlearnbench.recipes.quality import weights_hash
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import write_text
from unlearnbench.worlds.pictoworld import WORLD

NUMBERS = (
    ("forget_accuracy", "forget"), ("forget_accuracy", "paraphrase"),
    ("integrity_norm", "retain"), ("integrity_norm", "near"), ("integrity_norm", "far"),
)  # fmt: skip
HEAD = ("algorithm", "number", "mean", "unlearning seed", "sampling seed", "original", "prompts")


def pair_runs(algo: str, concept: str, seeds: list[str], samplings: list[str], out: Path) -> list[list[Run]]:
    """The runs of one algorithm: a row for each unlearning seed, a column for each sampling seed."""
    rows: list[list[Run]] = []
    with progress_bar(f"variance of {algo}", len(seeds) * len(samplings)) as bar:
        for seed in seeds:
            rows.append([])
            for sampling in samplings:
                folder = out / f"{algo}-{concept}-{seed}-{sampling}"
                source = [f"algo={algo}"]
                if rows[-1]:
                    source = ["algo=oracle", f"algo.weights={rows[-1][0].folder / 'weights.safetensors'}"]
                overrides = [f"concept={concept}", f"seed={seed}", f"sample.seed={sampling}", "metrics=quick"]
                rows[-1].append(finished_run(folder, [*source, *overrides]))
                bar.advance(remark=folder.name)
    return rows


def runs_on_other_originals(algo: str, concept: str, originals: list[str], seeds: list[str], out: Path) -> list[Run]:
    """The runs of one algorithm on the models that were retrained without each of these concepts.

    Args:
        algo: the algorithm.
        concept: the concept to unlearn.
        originals: concepts.
        seeds: overrides of the seeds.
        out: the folder of the runs.
    """
    runs = []
    with progress_bar(f"{algo} on other originals", len(originals)) as bar:
        for name in originals:
            few = ["sample.prompts=1", "sample.per_prompt=1", "save_pipeline=true", "metrics=quick"]
            original = finished_run(out / f"without-{name}", ["algo=oracle", f"concept={name}", *few]).folder / "pipeline"
            folder = out / f"{algo}-{concept}-without-{name}"
            overrides = [f"algo={algo}", f"concept={concept}", *seeds, f"model.path={original}", "metrics=quick"]
            runs.append(finished_run(folder, overrides))
            bar.advance(remark=folder.name)
    return runs


def spread(runs: list[list[Run]], others: list[Run], metric: str, split: str) -> list[float]:
    """The mean of `runs`, and the standard deviations by unlearning seed, sampling seed, original model and prompts.

    Args:
        runs: a row for each unlearning seed, a column for each sampling seed.
        others: runs with the first seed of each kind on other original models.
        metric: the metric.
        split: its prompts.
    """
    values = [[run.find(metric, split) for run in row] for row in runs]
    means = np.array([[value.unlearned for value in row] for row in values])
    widths = [(value.high - value.low) / 2 for row in values for value in row if value.high is not None and value.low is not None]
    by_seed, by_sampling = (float(means.mean(axis=axis).std(ddof=1)) for axis in (1, 0))
    by_original = float(np.std([means[0, 0], *(run.find(metric, split).unlearned for run in others)], ddof=1))
    return [float(means.mean()), by_seed, by_sampling, by_original, float(np.mean(widths)) / 1.96]


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", default="redirect,mace")
    parser.add_argument("--concept", default="church")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samplings", default="0,1,2")
    parser.add_argument("--originals", default="parachute,van_gogh", help="concepts that other originals do not know")
    parser.add_argument("--out", type=Path, default=Path("outputs/variance"))
    parser.add_argument("--write", type=Path, default=Path("docs/variance.md"))
    options = parser.parse_args()
    seeds, samplings, originals = (text.split(",") for text in (options.seeds, options.samplings, options.originals))
    if min(len(seeds), len(samplings)) < 2:
        parser.error("needs at least two seeds of each kind")
    body, counts = [], ""
    for algo in options.algos.split(","):
        out = options.out / weights_hash(WORLD)[:8]
        runs = pair_runs(algo, options.concept, seeds, samplings, out)
        first_seeds = [f"seed={seeds[0]}", f"sample.seed={samplings[0]}"]
        others = runs_on_other_originals(algo, options.concept, originals, first_seeds, out)
        counts = ", ".join(f"{runs[0][0].find(*measure).n} ({measure[1]})" for measure in NUMBERS)
        for measure in NUMBERS:
            body.append([algo, " on ".join(measure), *(f"{number:.3f}" for number in spread(runs, others, *measure))])
    lines = [
        "# Variance, by source",
        "",
        f"Made by `make variance`: {options.concept} on Pictoworld (weights sha256 `{weights_hash(WORLD)[:16]}`), unlearning",
        f"seeds {options.seeds}, sampling seeds {options.samplings}, every pair; n = {counts} images a run.",
        "Standard deviations: by unlearning seed and by sampling seed, of the means over the other kind of seed; by original,",
        f"of this one and of those that were retrained without {' and without '.join(originals)}, with the first seeds; by",
        f"prompts, from the runs' intervals. One of {len(seeds)} numbers is itself known to a factor of about two.",
        "",
        markdown_table(HEAD, body),
    ]
    write_text(options.write, "\n".join(lines).rstrip() + "\n")
    console.print(f"wrote {options.write}")


if __name__ == "__main__":
    main()
