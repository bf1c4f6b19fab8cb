"""What is left of words that no retain prompt of the training says: docs/unseen.md.

python scripts/unseen_words.py [--algos redirect,redirect:others=0,uce] [--concept church] [--words heart,ring,star]

An algorithm may be followed by settings of its own, each after a colon. Every retain prompt of the training that says one of
the words is left out; of the measured ones, those that say one are a row of their own, and the other far prompts another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leaderboard import finished

from unlearnbench.config.paths import CONF
from unlearnbench.console import console, format_number, progress_bar
from unlearnbench.data.concept import mentions
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import Prompt
from unlearnbench.recipes.pictoworld_quality import weights_hash
from unlearnbench.reports.export import markdown_table, records_csv
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import write_text

RETAIN = CONF / "retain" / "pictoworld.csv"
NUMBERS = {
    "forget accuracy": ("forget_accuracy", "forget"), "near": ("integrity_norm", "near"),
    "far, said in training": ("integrity_norm", "far"), "never said in training": ("integrity_norm", "generic"),
}  # fmt: skip


def without(prompts: Sequence[Prompt], words: Sequence[str]) -> list[Prompt]:
    """Training prompts that say none of the words; measured ones: those that say one as `generic`, other far ones as `far`."""
    kept = []
    for prompt in prompts:
        unseen = mentions(prompt.text, words)
        if prompt.use == "train" and not unseen:
            kept.append(prompt)
        elif prompt.use != "train" and (unseen or prompt.split == "far"):
            kept.append(replace(prompt, split="generic" if unseen else "far"))
    return kept


def row(algo: str, run: Run) -> list[str]:
    """One line of the table: integrity_norm with its 95 % interval over prompts."""
    found = [run.find(*which) for which in NUMBERS.values()]
    ends = [f" ({format_number(value.low)}..{format_number(value.high)})" if value.low is not None else "" for value in found]
    return [algo, *(format_number(value.unlearned) + end for value, end in zip(found, ends, strict=True))]


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", default="redirect,redirect:others=0,substitute_text,substitute,uce")
    parser.add_argument("--concept", default="church")
    parser.add_argument("--words", default="heart,ring,star")
    parser.add_argument("--out", type=Path, default=Path("outputs/unseen"))
    parser.add_argument("--write", type=Path, default=Path("docs/unseen.md"))
    known = parser.parse_args()
    words, algos = known.words.split(","), known.algos.split(",")
    listed = known.out / f"without-{'-'.join(words)}.csv"
    kept = without(load_prompts(str(RETAIN)), words)
    write_text(listed, records_csv([{"prompt": p.text, "split": p.split, "use": p.use} for p in kept]))
    body, counts = [], ""
    with progress_bar("unseen words", len(algos)) as shown:
        for algo in algos:
            name, *settings = algo.split(":")
            about = [f"algo={name}", *(f"algo.{setting}" for setting in settings), f"concept={known.concept}"]
            about += [f"retain.prompts={listed.resolve()}", "metrics=quick"]
            folder = "-".join([name, *settings, known.concept, *words])
            run = finished(known.out / weights_hash()[:8] / folder, about)
            counts = ", ".join(f"{run.find(*which).n} {name}" for name, which in NUMBERS.items())
            body.append(row(algo, run))
            shown.advance(remark=algo)
    lines = [
        "# Words that training never said",
        "",
        f"Made by `make unseen`: {known.concept} on Pictoworld (weights sha256 `{weights_hash()[:16]}`), seeds 0.",
        f"No retain prompt of the training says {', '.join(words)}. integrity_norm with its 95 % interval over prompts;",
        f"images a run: {counts}.",
        "",
        markdown_table(["algorithm", *NUMBERS], body),
    ]
    write_text(known.write, "\n".join(lines).rstrip() + "\n")
    console.print(f"wrote {known.write}")


if __name__ == "__main__":
    main()
