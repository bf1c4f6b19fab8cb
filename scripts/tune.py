"""The same number of trials for every algorithm, by the same rule, on concepts and a seed that no leaderboard reports.

python scripts/tune.py [--trials 8] [--algos ga,uce] [--concepts fish,dotted] [--seed 100]

Of the trials whose forget accuracy is at most 5 % (mean over the concepts) the one with the highest integrity_norm on the
retain prompts wins; if there is none, the one with the lowest forget accuracy. The first trial is the setting that
conf/tuned/ holds, the others are Optuna's (TPE, seeded). What may vary stands in conf/search/<algo>.yaml, else the
learning rate and the steps. The winner goes to conf/tuned/<model>/<algo>.yaml. Everything is deterministic: a second call
finds the finished trials and goes on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from leaderboard import SILENT, once
from omegaconf import OmegaConf

from unlearnbench.bench import check
from unlearnbench.config import CONF, choices, compose
from unlearnbench.pictoworld.quality import weights_hash
from unlearnbench.progress import bar, console
from unlearnbench.results import write_text
from unlearnbench.search import propose, space
from unlearnbench.spec import Spec

LEFT_OUT = ("none", "oracle", "sld_weak", "sld_strong", "sld_max")  # nothing to tune; sld's presets are sld's search
QUICK = ("metrics=quick", "sample.prompts=16", "sample.per_prompt=1")


def score(forget: float, kept: float) -> float:
    """The rule as one number, higher is better: integrity if it forgets, else below every such integrity by forgetting."""
    return kept if forget <= SILENT else -10 - forget


def tune(algo: str, concepts: list[str], seed: int, trials: int, out: Path) -> list[dict[str, Any]]:
    """Every trial of one algorithm: its settings, mean forget accuracy and integrity_norm; a failed trial has none."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    among = space(algo)
    present = compose(f"algo={algo}").algo
    study.enqueue_trial({name: present[name] for name in among}, skip_if_exists=True)
    found = []
    with bar(f"tune {algo}", trials) as shown:
        for number in range(trials):
            trial = study.ask()
            chosen = {name: propose(trial, name, values) for name, values in among.items()}
            words = [f"algo.{name}={value}" for name, value in chosen.items()]
            runs = [
                once(
                    out / algo / f"{number:02d}-{concept}", [f"algo={algo}", f"concept={concept}", f"seed={seed}", *words, *QUICK]
                )
                for concept in concepts
            ]
            done = [run for run in runs if run is not None and run.log["status"] == "done"]
            if len(done) < len(concepts):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                found.append({"algo": algo, "trial": number, **chosen})
            else:
                forget = float(np.mean([run.find("forget_accuracy", "forget").unlearned for run in done]))
                kept = float(np.mean([run.find("integrity_norm", "retain").unlearned for run in done]))
                study.tell(trial, score(forget, kept))
                found.append({"algo": algo, "trial": number, **chosen, "forget": forget, "integrity": kept})
            shown.advance(remark=", ".join(words))
    return found


def keep(algo: str, model: str, found: list[dict[str, Any]], command: str) -> dict[str, Any] | None:
    """Write the best trial's settings over those in conf/tuned/; returns it, or None if every trial failed."""
    ended = [trial for trial in found if "forget" in trial]
    if not ended:
        return None
    best = max(ended, key=lambda trial: score(trial["forget"], trial["integrity"]))
    path = CONF / "tuned" / model / f"{algo}.yaml"
    settings = dict(OmegaConf.load(path)) if path.is_file() else {}
    settings |= {name: best[name] for name in space(algo)}
    told = f"# By `{command}`: trial {best['trial']} of {len(found)}, forget accuracy {best['forget']:.3f}, "
    lines = ["# @package algo", f"{told}integrity_norm {best['integrity']:.3f}."]
    write_text(path, "\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create(settings)))
    return best


def main() -> None:
    """Tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--algos", default=",".join(name for name in choices("algo") if name not in LEFT_OUT))
    parser.add_argument("--concepts", default="fish,dotted")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("outputs/tune"))
    parser.add_argument("--dry", action="store_true", help="leave conf/tuned/ as it is")
    known = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command = f"make tune (--trials {known.trials} --concepts {known.concepts} --seed {known.seed})"
    everything = []
    for algo in known.algos.split(","):
        if lacks := check(Spec.of(compose(f"algo={algo}", f"concept={known.concepts.split(',')[0]}"))):
            console.print(f"left out: {algo}: {lacks[0]}", style="yellow", markup=False)
            continue
        found = tune(algo, known.concepts.split(","), known.seed, known.trials, known.out / weights_hash()[:8])
        best = found[0] if known.dry else keep(algo, "pictoworld", found, command)
        console.print(f"{algo}: {best}", markup=False)
        everything += [{"algo": t["algo"], "trial": t["trial"], "forget": t.get("forget"), "integrity": t.get("integrity"),
                        "settings": " ".join(f"{name}={t[name]}" for name in space(algo))} for t in found]  # fmt: skip
    known.out.mkdir(parents=True, exist_ok=True)
    with (known.out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["algo", "trial", "forget", "integrity", "settings"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
    console.print(f"wrote {known.out / 'trials.csv'}" + ("" if known.dry else " and conf/tuned/pictoworld/"))


if __name__ == "__main__":
    main()
