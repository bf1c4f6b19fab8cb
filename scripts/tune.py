"""The same number of trials for every algorithm, by the same rule, on concepts and a seed that no leaderboard reports.

python scripts/tune.py [--trials 8] [--algos ga,uce] [--concepts fish,dotted] [--seed 100] [--jobs 1]

Of the trials whose forget accuracy is at most 5 % (mean over the concepts) the one with the highest integrity_norm on the
retain prompts wins; if there is none, the one with the lowest forget accuracy. The first trial is the setting that
conf/tuned/ held, the others are Optuna's (TPE, seeded; its first ten are drawn at random). A trial ends before its last
concept where no outcome there could let it win. What may vary stands in conf/search/<algo>.yaml, else the learning rate
and the steps. The winner goes to conf/tuned/<model>/<algo>.yaml, and every trial to docs/tuning.csv, which is the memory:
a trial that stands there with the same settings and weights is not run again, so a search of hours is made in as many
calls as one likes. With `--jobs` the trials that are drawn at random, of all algorithms, run several at a time.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from leaderboard import SILENT, once, settings_of, several, words_of
from omegaconf import OmegaConf

from unlearnbench.config.compose import compose
from unlearnbench.config.paths import CONF, choices
from unlearnbench.console import console, progress_bar
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.pictoworld_quality import weights_hash
from unlearnbench.reports.export import records_csv
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import digest
from unlearnbench.sweeps.search_space import propose_value, search_space

LEFT_OUT = ("none", "oracle", "noise", "sld_weak", "sld_strong", "sld_max")  # controls; sld's presets are sld's search
AT_RANDOM = 10  # trials that TPE draws before it looks at any outcome


@dataclass
class Trial:
    """One row of the csv; without numbers if a run of it failed.

    Attributes:
        algo: the algorithm.
        trial: counted from 0, which is the setting that conf/tuned/ held.
        settings: what the search chose, as words without "algo.".
        forget: forget accuracy, mean over the concepts that were run; "" if a run failed.
        integrity: integrity_norm on the retain prompts, likewise.
        made: digest of all settings and of the model's weights.
        concepts: those that were run: fewer than all where the others could not have let it win.
    """

    algo: str
    trial: str
    settings: str
    forget: str
    integrity: str
    made: str
    concepts: str

    def score(self, of: int) -> float:
        """The rule as one number, higher is better: integrity if it forgets, else below every such integrity by forgetting.

        Of a trial that was run on fewer concepts than there are, `of`, the most that it could have come to: nothing left
        (forget accuracy 0) and nothing changed (integrity_norm 1) on each of the others.
        """
        share = len(self.concepts.split()) / of
        forget, integrity = float(self.forget) * share, float(self.integrity) * share + 1 - share
        return integrity if forget <= SILENT else -10 - forget


@dataclass
class Search:
    """What all algorithms share: the concepts, the seed, how many trials, where runs and trials are kept."""

    concepts: list[str]
    seed: int
    trials: int
    out: Path
    memory: Path

    def words(self, algo: str, concept: str, chosen: Sequence[str]) -> list[str]:
        """A run's overrides."""
        return [*words_of(algo, concept, str(self.seed), quick=True), *(f"algo.{word}" for word in chosen)]

    def made(self, algo: str, chosen: Sequence[str]) -> str:
        """The digest of a trial."""
        of_each = [settings_of(RunSpec.of(compose(*self.words(algo, concept, chosen)))) for concept in self.concepts]
        return digest(of_each, weights_hash())[:16]

    def known(self) -> dict[tuple[str, str], Trial]:
        """The trials in the csv."""
        if not self.memory.is_file():
            return {}
        with self.memory.open(newline="", encoding="utf-8") as file:
            return {(row["algo"], row["trial"]): Trial(**row) for row in csv.DictReader(file)}

    def keep(self, trial: Trial) -> None:
        """Write one more trial to the csv, which other processes write too."""
        with FileLock(f"{self.memory}.lock"):
            rows = {**self.known(), (trial.algo, trial.trial): trial}
            ordered = sorted(rows, key=lambda about: (about[0], int(about[1])))
            write_text(self.memory, records_csv([vars(rows[about]) for about in ordered]))

    def first(self, algo: str) -> dict[str, Any]:
        """The setting of trial 0: that of an earlier call, else what conf/tuned/ holds now."""
        before = self.known().get((algo, "0"))
        if before is not None and before.made == self.made(algo, before.settings.split()):
            return dict(OmegaConf.from_dotlist(before.settings.split()))
        present = compose(f"algo={algo}").algo
        return {name: present[name] for name in search_space(algo)}

    def best(self, algo: str) -> float:
        """The highest score that a trial in the csv has with the settings and weights of today."""
        held = [trial for (name, _), trial in self.known().items() if name == algo and trial.forget]
        ranked = sorted(held, key=lambda trial: -trial.score(len(self.concepts)))
        today = (trial for trial in ranked if trial.made == self.made(algo, trial.settings.split()))
        return next((trial.score(len(self.concepts)) for trial in today), -math.inf)

    def run(self, algo: str, number: int, chosen: Sequence[str]) -> Trial:
        """One trial, from the csv or by its runs, no further than it could still score more than the best of the csv."""
        made = self.made(algo, chosen)
        before = self.known().get((algo, str(number)))
        if before is not None and before.made == made and before.forget:
            return before
        beaten = self.best(algo)
        trial = Trial(algo, str(number), " ".join(chosen), "", "", made, "")
        forget, integrity = [], []
        for name in self.concepts:
            run = once(self.out / algo / f"{number:02d}-{name}", self.words(algo, name, chosen))
            if run is None or run.log["status"] != "done":
                trial.forget = trial.integrity = ""
                break
            forget.append(run.find("forget_accuracy", "forget").unlearned)
            integrity.append(run.find("integrity_norm", "retain").unlearned)
            trial.forget, trial.integrity = str(float(np.mean(forget))), str(float(np.mean(integrity)))
            trial.concepts = f"{trial.concepts} {name}".strip()
            if trial.score(len(self.concepts)) <= beaten:
                break
        self.keep(trial)
        return trial

    def study(self, algo: str) -> optuna.Study:
        """A search that begins with the setting of trial 0."""
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=AT_RANDOM)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(self.first(algo))
        return study

    def asked(self, algo: str, study: optuna.Study) -> Iterator[tuple[optuna.Trial, list[str]]]:
        """Every trial with its settings as words, each drawn when it is asked for."""
        among = search_space(algo)
        for _ in range(self.trials):
            trial = study.ask()
            yield trial, [f"{name}={propose_value(trial, name, values)}" for name, values in among.items()]

    def ahead(self, algos: Sequence[str], jobs: int) -> None:
        """Run the trials that no outcome can change, several at a time: `tune` finds them in the csv."""
        drawn = [
            (algo, number, chosen)
            for algo in algos
            for number, (_, chosen) in enumerate(islice(self.asked(algo, self.study(algo)), AT_RANDOM))
        ]
        with progress_bar("trials", len(drawn)) as shown, several(jobs) as mapped:
            for trial in mapped(self.run, *zip(*drawn, strict=True)):
                shown.advance(remark=f"{trial.algo} {trial.settings}")

    def tune(self, algo: str) -> list[Trial]:
        """Every trial of one algorithm."""
        study, found = self.study(algo), list[Trial]()
        with progress_bar(f"tune {algo}", self.trials) as shown:
            for number, (asked, chosen) in enumerate(self.asked(algo, study)):
                trial = self.run(algo, number, chosen)
                if trial.forget:
                    study.tell(asked, trial.score(len(self.concepts)))
                else:
                    study.tell(asked, state=optuna.trial.TrialState.FAIL)
                found.append(trial)
                shown.advance(remark=trial.settings)
        return found


def settle(algo: str, model: str, found: Sequence[Trial], of: int, command: str) -> Trial | None:
    """Write the settings of the best trial, on `of` concepts, over those in conf/tuned/; None if every trial failed."""
    ended = [trial for trial in found if trial.forget]
    if not ended:
        return None
    best = max(ended, key=lambda trial: trial.score(of))
    path = CONF / "tuned" / model / f"{algo}.yaml"
    settings = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    settings = OmegaConf.merge(settings, OmegaConf.from_dotlist(best.settings.split()))
    told = f"# By `{command}`: trial {best.trial} of {len(found)}, forget accuracy {float(best.forget):.3f}, "
    lines = ["# @package algo", f"{told}integrity_norm {float(best.integrity):.3f}."]
    write_text(path, "\n".join(lines) + "\n" + OmegaConf.to_yaml(settings))
    return best


def main() -> None:
    """Tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--algos", default=",".join(name for name in choices("algo") if name not in LEFT_OUT))
    parser.add_argument("--concepts", default="fish,dotted")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, each in a process of its own")
    parser.add_argument("--out", type=Path, default=Path("outputs/tune"))
    parser.add_argument("--memory", type=Path, default=Path("docs/tuning.csv"))
    parser.add_argument("--dry", action="store_true", help="leave conf/tuned/ as it is")
    known = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command = f"make tune (--trials {known.trials} --concepts {known.concepts} --seed {known.seed})"
    concepts = known.concepts.split(",")
    search = Search(concepts, known.seed, known.trials, known.out / weights_hash()[:8], known.memory)
    search.out.mkdir(parents=True, exist_ok=True)
    algos = []
    for algo in known.algos.split(","):
        if lacks := find_problems(RunSpec.of(compose(f"algo={algo}", f"concept={concepts[0]}"))):
            console.print(f"left out: {algo}: {lacks[0]}", style="yellow", markup=False)
        else:
            algos.append(algo)
    if known.jobs > 1:
        search.ahead(algos, known.jobs)
    for algo in algos:
        found = search.tune(algo)
        best = None if known.dry else settle(algo, "pictoworld", found, len(concepts), command)
        console.print(f"{algo}: {best}", markup=False)
    console.print(f"wrote {known.memory}" + ("" if known.dry else " and conf/tuned/pictoworld/"))


if __name__ == "__main__":
    main()
