"""Tune every algorithm with the same number of trials and the same rule, on concepts and a seed that no leaderboard reports.

python scripts/tune.py [--world pictoworld] [--trials 8] [--algos ga,uce] [--concepts fish,dotted] [--seed 100] [--jobs 1]

Of the trials whose forget accuracy is at most 5 % (mean over the concepts) the one with the highest integrity_norm on the
retain prompts wins; if there is none, the one with the lowest forget accuracy. The first trial has the settings of
conf/tuned/, the others are Optuna's (TPE, seeded; its first ten are random). A trial ends before its last concept if no
outcome there could let it win. conf/search/<algo>.yaml names the settings to search; by default these are the learning rate
and the steps. The winner goes to conf/tuned/<world>/<algo>.yaml, and every trial to docs/tuning.csv (that of Pictoscenes to
docs/tuning-pictoscenes.csv): a trial in that file with the same settings and weights is not repeated, so a search of hours can
be made in several calls. With `--jobs` the random trials of all algorithms run several at a time. `--add "esd_x lr=1e-4 eta=3"`
makes one more trial, numbered from 100, with settings chosen by hand, which can win like the others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from boards import PICTOSCENES, PICTOWORLD, Board
from omegaconf import OmegaConf
from stored_runs import find_or_run, locked, process_map, read_csv, run_overrides, settings_digest, write_csv

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.console import console, progress_bar
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.quality import weights_hash
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import digest
from unlearnbench.sweeps.search_space import propose_value, search_space

FORGOTTEN = 0.05  # a trial forgets if its forget accuracy is at most this
LEFT_OUT = (
    "none", "oracle", "checkpoint", "noise", "word_swap", "blocklist", "negative_prompt", "sld_weak", "sld_strong", "sld_max",
)  # fmt: skip
"""Controls, others' weights, and the presets of sld, which are in its search."""
BY_HAND = 100  # the first number of a trial by hand
RANDOM_TRIALS = 10  # trials that TPE draws before it uses any outcome


@dataclass
class Trial:
    """One row of the csv; without numbers if a run failed.

    Attributes:
        algo: the algorithm.
        trial: counted from 0, which has the settings of conf/tuned/.
        settings: the settings that were searched, as overrides without "algo.".
        forget: forget accuracy, mean over the concepts that were run; "" if a run failed.
        integrity: integrity_norm on the retain prompts, likewise.
        made: digest of all settings and of the model's weights.
        concepts: the concepts that were run; fewer than all if the others could not have let it win.
    """

    algo: str
    trial: str
    settings: str
    forget: str
    integrity: str
    made: str
    concepts: str

    def score(self, total: int) -> float:
        """The rule as one number, higher is better: integrity if the trial forgets, else -10 - forget accuracy.

        A trial that ran fewer than `total` concepts has the largest score that was possible: forget accuracy 0 and
        integrity_norm 1 on each of the others.
        """
        fraction = len(self.concepts.split()) / total
        forget, integrity = float(self.forget) * fraction, float(self.integrity) * fraction + 1 - fraction
        return integrity if forget <= FORGOTTEN else -10 - forget


@dataclass
class Search:
    """Tuning of any algorithm: the world (by its leaderboard), the concepts, the seed, the number of trials, the folder of runs
    and the csv of trials.
    """

    board: Board
    concepts: list[str]
    seed: int
    trials: int
    out: Path
    csv: Path

    def overrides(self, algo: str, concept: str, settings: Sequence[str]) -> list[str]:
        """The overrides of a run."""
        words = run_overrides(algo, concept, str(self.seed), quick=True)
        return [*words, f"model={self.board.domain}", *(f"algo.{setting}" for setting in settings)]

    def trial_digest(self, algo: str, settings: Sequence[str]) -> str:
        """The digest of a trial's settings on all concepts, and of the model's weights."""
        digests = [settings_digest(RunSpec.of(compose(*self.overrides(algo, name, settings)))) for name in self.concepts]
        return digest(digests, weights_hash(self.board.world))[:16]

    def stored_trials(self) -> dict[tuple[str, str], Trial]:
        """The trials in the csv, by algorithm and number."""
        return {(row["algo"], row["trial"]): Trial(**row) for row in read_csv(self.csv)}

    def store(self, trial: Trial) -> None:
        """Add a trial to the csv, or replace it; several processes may do so at once."""
        with locked(self.csv):
            trials = {**self.stored_trials(), (trial.algo, trial.trial): trial}
            keys = sorted(trials, key=lambda key: (key[0], int(key[1])))
            write_csv(self.csv, [vars(trials[key]) for key in keys])

    def first_settings(self, algo: str) -> dict[str, Any]:
        """The settings of trial 0: those of an earlier call if they are up to date, else those of conf/tuned/."""
        stored = self.stored_trials().get((algo, "0"))
        if stored is not None and stored.made == self.trial_digest(algo, stored.settings.split()):
            return dict(OmegaConf.from_dotlist(stored.settings.split()))
        config = compose(f"algo={algo}", f"model={self.board.domain}").algo
        return {name: config[name] for name in search_space(algo)}

    def best_score(self, algo: str) -> float:
        """The highest score of a trial in the csv that is up to date."""
        stored = [trial for (name, _), trial in self.stored_trials().items() if name == algo and trial.forget]
        by_score = sorted(stored, key=lambda trial: -trial.score(len(self.concepts)))
        current = (trial for trial in by_score if trial.made == self.trial_digest(algo, trial.settings.split()))
        return next((trial.score(len(self.concepts)) for trial in current), -math.inf)

    def run(self, algo: str, number: int, settings: Sequence[str]) -> Trial:
        """One trial, from the csv or by its runs; it ends as soon as it can no longer beat the best trial of the csv."""
        made = self.trial_digest(algo, settings)
        for stored in self.stored_trials().values():
            if (stored.algo, stored.made) == (algo, made) and stored.forget:
                trial = replace(stored, trial=str(number))
                self.store(trial)
                return trial
        best = self.best_score(algo)
        trial = Trial(algo, str(number), " ".join(settings), "", "", made, "")
        forget, integrity = [], []
        for name in self.concepts:
            run = find_or_run(self.out / algo / f"{number:02d}-{name}", self.overrides(algo, name, settings))
            if run is None or run.log["status"] != "done":
                trial.forget = trial.integrity = ""
                break
            forget.append(run.find("forget_accuracy", "forget").unlearned)
            integrity.append(run.find("integrity_norm", "retain").unlearned)
            trial.forget, trial.integrity = str(float(np.mean(forget))), str(float(np.mean(integrity)))
            trial.concepts = f"{trial.concepts} {name}".strip()
            if trial.score(len(self.concepts)) <= best:
                break
        self.store(trial)
        return trial

    def add(self, words: str) -> Trial:
        """One more trial of an algorithm, with settings chosen by hand, as in "esd_x lr=1e-4 eta=3"."""
        algo, *settings = words.split()
        if known := [trial for trial in self.added(algo) if trial.settings.split() == settings]:
            return known[0]
        numbers = [int(number) for name, number in self.stored_trials() if name == algo]
        return self.run(algo, max([BY_HAND - 1, *numbers]) + 1, settings)

    def added(self, algo: str) -> list[Trial]:
        """The trials by hand that are up to date."""
        stored = [trial for trial in self.stored_trials().values() if trial.algo == algo and int(trial.trial) >= BY_HAND]
        return [trial for trial in stored if trial.made == self.trial_digest(algo, trial.settings.split())]

    def study(self, algo: str) -> optuna.Study:
        """A study that begins with the settings of trial 0."""
        sampler = optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=RANDOM_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.enqueue_trial(self.first_settings(algo))
        return study

    def proposals(self, algo: str, study: optuna.Study) -> Iterator[tuple[optuna.Trial, list[str]]]:
        """Every trial with its settings as overrides; each is drawn when the one before has been told to the study."""
        space = search_space(algo)
        for _ in range(self.trials):
            trial = study.ask()
            yield trial, [f"{name}={propose_value(trial, name, values)}" for name, values in space.items()]

    def run_random_trials(self, algos: Sequence[str], jobs: int) -> None:
        """Run the trials whose settings depend on no outcome, several at a time; `tune` reads them from the csv."""
        trials = [
            (algo, number, settings)
            for algo in algos
            for number, (_, settings) in enumerate(islice(self.proposals(algo, self.study(algo)), RANDOM_TRIALS))
        ]
        with progress_bar("trials", len(trials)) as bar, process_map(jobs) as mapped:
            for trial in mapped(self.run, *zip(*trials, strict=True)):
                bar.advance(remark=f"{trial.algo} {trial.settings}")

    def tune(self, algo: str) -> list[Trial]:
        """Every trial of one algorithm."""
        study, trials = self.study(algo), list[Trial]()
        with progress_bar(f"tune {algo}", self.trials) as bar:
            for number, (proposal, settings) in enumerate(self.proposals(algo, study)):
                trial = self.run(algo, number, settings)
                if trial.forget:
                    study.tell(proposal, trial.score(len(self.concepts)))
                else:
                    study.tell(proposal, state=optuna.trial.TrialState.FAIL)
                trials.append(trial)
                bar.advance(remark=trial.settings)
        return trials


def write_best(algo: str, model: str, trials: Sequence[Trial], total: int, command: str) -> Trial | None:
    """Write the settings of the best trial, on `total` concepts, over those in conf/tuned/; None if every trial failed."""
    complete = [trial for trial in trials if trial.forget]
    if not complete:
        return None
    best = max(complete, key=lambda trial: trial.score(total))
    path = CONF / "tuned" / model / f"{algo}.yaml"
    settings = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    settings = OmegaConf.merge(settings, OmegaConf.from_dotlist(best.settings.split()))
    which = "a trial by hand" if int(best.trial) >= BY_HAND else f"trial {best.trial}"
    source = f"# By `{command}`: {which} of {len(trials)}, forget accuracy {float(best.forget):.3f}, "
    lines = ["# @package algo", f"{source}integrity_norm {float(best.integrity):.3f}."]
    write_text(path, "\n".join(lines) + "\n" + OmegaConf.to_yaml(settings))
    return best


def possible(algos: Sequence[str], concept: str, domain: str) -> list[str]:
    """The algorithms whose run has no problem; prints the others."""
    result = []
    for algo in algos:
        if problems := find_problems(RunSpec.of(compose(f"algo={algo}", f"concept={concept}", f"model={domain}"))):
            console.print(f"left out: {algo}: {problems[0]}", style="yellow", markup=False)
        else:
            result.append(algo)
    return result


def main() -> None:
    """Tune, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default=PICTOWORLD.domain, choices=[PICTOWORLD.domain, PICTOSCENES.domain])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--algos", default=",".join(name for name in choices("algo") if name not in LEFT_OUT))
    parser.add_argument("--concepts", help="by default fish,dotted; parachute of Pictoscenes")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, each in its own process")
    parser.add_argument("--out", type=Path, default=Path("outputs/tune"))
    parser.add_argument("--memory", type=Path, help="the csv of trials, by default that in docs/")
    parser.add_argument("--add", action="append", default=[], metavar="WORDS", help="an algorithm and settings chosen by hand")
    parser.add_argument("--dry", action="store_true", help="leave conf/tuned/ as it is")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    board = PICTOSCENES if options.world == PICTOSCENES.domain else PICTOWORLD
    concepts = options.concepts.split(",") if options.concepts else [*board.tuned_on]
    command = f"make tune (--trials {options.trials} --concepts {','.join(concepts)} --seed {options.seed})"
    memory = options.memory or Path("docs") / board.trials
    search = Search(board, concepts, options.seed, options.trials, options.out / board.weights[:8], memory)
    search.out.mkdir(parents=True, exist_ok=True)
    algos = possible(options.algos.split(","), concepts[0], board.domain)
    if options.jobs > 1:
        search.run_random_trials(algos, options.jobs)
    for words in options.add:
        try:
            search.add(words)
        except UserError as error:
            parser.error(f"--add {words!r}: {error}")
    for algo in algos:
        trials = [*search.tune(algo), *search.added(algo)]
        best = None if options.dry else write_best(algo, board.domain, trials, len(concepts), command)
        console.print(f"{algo}: {best}", markup=False)
    console.print(f"wrote {memory}" + ("" if options.dry else f" and conf/tuned/{board.domain}/"))


if __name__ == "__main__":
    main()
