"""How far a number moves by chance, source by source: docs/variance.md.

python scripts/variance.py [--algos redirect,mace] [--concept church] [--seeds 0,1,2] [--samplings 0,1,2]
    [--originals parachute,van_gogh]

An algorithm unlearns once for each unlearning seed. The weights of each are then sampled with each sampling seed (that is
`algo=oracle algo.weights=...`, which only loads them), so that one number comes from every pair. Seeds move it by
the standard deviation of the means over the other kind of seed; prompts by the half-width of the run's own 95 % interval
over 1.96, the mean of all runs'. Other originals are those that were retrained without another concept, the shipped oracles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from leaderboard import finished

from unlearnbench.console import console, progress_bar
from unlearnbench.recipes.pictoworld_quality import weights_hash
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import write_text

NUMBERS = (
    ("forget_accuracy", "forget"), ("forget_accuracy", "paraphrase"),
    ("integrity_norm", "retain"), ("integrity_norm", "near"), ("integrity_norm", "far"),
)  # fmt: skip
HEAD = ("algorithm", "number", "mean", "unlearning seed", "sampling seed", "original", "prompts")


def every_pair(algo: str, concept: str, seeds: list[str], samplings: list[str], out: Path) -> list[list[Run]]:
    """The runs of one algorithm: a row for each unlearning seed, a column for each sampling seed."""
    rows: list[list[Run]] = []
    with progress_bar(f"variance of {algo}", len(seeds) * len(samplings)) as shown:
        for seed in seeds:
            rows.append([])
            for sampling in samplings:
                folder = out / f"{algo}-{concept}-{seed}-{sampling}"
                made_by = [f"algo={algo}"]
                if rows[-1]:
                    made_by = ["algo=oracle", f"algo.weights={rows[-1][0].folder / 'weights.safetensors'}"]
                words = [f"concept={concept}", f"seed={seed}", f"sample.seed={sampling}", "metrics=quick"]
                rows[-1].append(finished(folder, [*made_by, *words]))
                shown.advance(remark=folder.name)
    return rows


def of_others(algo: str, concept: str, originals: list[str], words: list[str], out: Path) -> list[Run]:
    """The runs of one algorithm, with these words, on the models that were retrained without each of these."""
    runs = []
    with progress_bar(f"{algo} on other originals", len(originals)) as shown:
        for name in originals:
            few = ["sample.prompts=1", "sample.per_prompt=1", "save_pipeline=true", "metrics=quick"]
            original = finished(out / f"without-{name}", ["algo=oracle", f"concept={name}", *few]).folder / "pipeline"
            folder = out / f"{algo}-{concept}-without-{name}"
            about = [f"algo={algo}", f"concept={concept}", *words, f"model.path={original}", "metrics=quick"]
            runs.append(finished(folder, about))
            shown.advance(remark=folder.name)
    return runs


def spread(runs: list[list[Run]], others: list[Run], metric: str, split: str) -> list[float]:
    """Mean of `runs`, and the standard deviations by unlearning seed, sampling seed, original and prompts.

    Args:
        runs: a row for each unlearning seed, a column for each sampling seed.
        others: with the first seed of each kind, of other originals.
        metric: which number.
        split: of which prompts.
    """
    found = [[run.find(metric, split) for run in row] for row in runs]
    means = np.array([[value.unlearned for value in row] for row in found])
    widths = [(value.high - value.low) / 2 for row in found for value in row if value.high is not None and value.low is not None]
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
    parser.add_argument("--originals", default="parachute,van_gogh", help="what other originals were retrained without")
    parser.add_argument("--out", type=Path, default=Path("outputs/variance"))
    parser.add_argument("--write", type=Path, default=Path("docs/variance.md"))
    known = parser.parse_args()
    seeds, samplings, originals = (text.split(",") for text in (known.seeds, known.samplings, known.originals))
    if min(len(seeds), len(samplings)) < 2:
        parser.error("two seeds of each kind at least")
    body, counts = [], ""
    for algo in known.algos.split(","):
        out = known.out / weights_hash()[:8]
        runs = every_pair(algo, known.concept, seeds, samplings, out)
        others = of_others(algo, known.concept, originals, [f"seed={seeds[0]}", f"sample.seed={samplings[0]}"], out)
        counts = ", ".join(f"{runs[0][0].find(*which).n} ({which[1]})" for which in NUMBERS)
        for which in NUMBERS:
            body.append([algo, " on ".join(which), *(f"{number:.3f}" for number in spread(runs, others, *which))])
    lines = [
        "# Variance, by source",
        "",
        f"Made by `make variance`: {known.concept} on Pictoworld (weights sha256 `{weights_hash()[:16]}`), unlearning seeds",
        f"{known.seeds}, sampling seeds {known.samplings}, every pair; n = {counts} images a run.",
        "Standard deviations: by unlearning seed and by sampling seed, of the means over the other kind of seed; by original,",
        f"of this one and of those that were retrained without {' and without '.join(originals)}, with the first seeds; by",
        f"prompts, from the runs' intervals. One of {len(seeds)} numbers is itself known to a factor of about two.",
        "",
        markdown_table(HEAD, body),
    ]
    write_text(known.write, "\n".join(lines).rstrip() + "\n")
    console.print(f"wrote {known.write}")


if __name__ == "__main__":
    main()
