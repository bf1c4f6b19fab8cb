"""Integrity of prompts with words that no retain prompt of the training contains: docs/unseen.md.

python scripts/unseen_words.py [--algos redirect,redirect:others=0,uce] [--concept church] [--words heart,ring,star]

Settings of an algorithm may follow its name, each after a colon. Training uses no retain prompt with one of the words. Of the
measured prompts, those with one of the words are one row, and the other far prompts another.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stored_runs import finished_run

from unlearnbench.config.paths import CONF
from unlearnbench.console import console, progress_bar
from unlearnbench.console.tables import format_number
from unlearnbench.data.concept import mentions
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import Prompt
from unlearnbench.recipes.quality import weights_hash
from unlearnbench.reports.export import markdown_table, records_csv
from unlearnbench.results.intervals import interval_text
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import write_text
from unlearnbench.worlds.pictoworld import WORLD

RETAIN = CONF / "retain" / "pictoworld.csv"
NUMBERS = {
    "detection rate": ("forget_accuracy", "forget"), "near": ("integrity_norm", "near"),
    "far, said in training": ("integrity_norm", "far"), "never said in training": ("integrity_norm", "generic"),
}  # fmt: skip


def split_by_words(prompts: Sequence[Prompt], words: Sequence[str]) -> list[Prompt]:
    """Training prompts without the words; of the measured ones, those with a word as `generic`, other far ones as `far`."""
    result = []
    for prompt in prompts:
        unseen = mentions(prompt.text, words)
        if prompt.use == "train" and not unseen:
            result.append(prompt)
        elif prompt.use != "train" and (unseen or prompt.split == "far"):
            result.append(replace(prompt, split="generic" if unseen else "far"))
    return result


def row(algo: str, run: Run) -> list[str]:
    """One line of the table: integrity_norm with its 95 % interval over prompts."""
    values = [run.find(*measure) for measure in NUMBERS.values()]
    ends = [interval_text(value.low, value.high) for value in values]
    cells = [format_number(value.unlearned) + (f" ({end})" if end else "") for value, end in zip(values, ends, strict=True)]
    return [algo, *cells]


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", default="redirect,redirect:others=0,substitute_text,substitute,uce")
    parser.add_argument("--concept", default="church")
    parser.add_argument("--words", default="heart,ring,star")
    parser.add_argument("--out", type=Path, default=Path("outputs/unseen"))
    parser.add_argument("--write", type=Path, default=Path("docs/unseen.md"))
    options = parser.parse_args()
    words, algos = options.words.split(","), options.algos.split(",")
    prompts_path = options.out / f"without-{'-'.join(words)}.csv"
    prompts = split_by_words(load_prompts(str(RETAIN)), words)
    write_text(prompts_path, records_csv([{"prompt": p.text, "split": p.split, "use": p.use} for p in prompts]))
    body, counts = [], ""
    with progress_bar("unseen words", len(algos)) as bar:
        for algo in algos:
            name, *settings = algo.split(":")
            overrides = [f"algo={name}", *(f"algo.{setting}" for setting in settings), f"concept={options.concept}"]
            overrides += [f"retain.prompts={prompts_path.resolve()}", "metrics=quick"]
            folder = "-".join([name, *settings, options.concept, *words])
            run = finished_run(options.out / weights_hash(WORLD)[:8] / folder, overrides)
            counts = ", ".join(f"{run.find(*measure).n} {name}" for name, measure in NUMBERS.items())
            body.append(row(algo, run))
            bar.advance(remark=algo)
    lines = [
        "# Words that training never said",
        "",
        f"Made by `make unseen`: {options.concept} on Pictoworld (weights sha256 `{weights_hash(WORLD)[:16]}`), seeds 0.",
        f"No retain prompt of the training says {', '.join(words)}. integrity_norm with its 95 % interval over prompts;",
        f"images a run: {counts}.",
        "",
        markdown_table(["algorithm", *NUMBERS], body),
    ]
    write_text(options.write, "\n".join(lines).rstrip() + "\n")
    console.print(f"wrote {options.write}")


if __name__ == "__main__":
    main()
