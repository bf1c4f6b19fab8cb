"""The leaderboards: what each of them runs, its columns, and what its page says of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from stored_runs import run_overrides

from unlearnbench.config.compose import compose
from unlearnbench.config.paths import CONF, choices
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.quality import weights_hash
from unlearnbench.results.depth import POOLED, TEXT_PROBE
from unlearnbench.worlds import World, embedded_world

Measure = tuple[str, str]  # a metric and a split, or a probe and a number of its row
SHARED = {
    "forget": ("forget_accuracy", "forget"), "paraphrase": ("forget_accuracy", "paraphrase"),
    "integrity": ("integrity_norm", "retain"), "near": ("integrity_norm", "near"), "far": ("integrity_norm", "far"),
    "generic": ("integrity_norm", "generic"), "right": ("retain_accuracy", "retain"), "fid": ("fid", "retain"),
    "fid_original": ("fid_original", "retain"),
}  # fmt: skip
COST = {"seconds": ("seconds", "unlearning"), "trained": ("trained_parameters", "unlearning")}
COMPANY = {
    "company": ("forget_accuracy", "forget, company"), "unseen": ("forget_accuracy", "paraphrase, unseen"),
    "rest_kept": ("rest_kept", "forget, company"), "rest_binding": ("rest_binding", "forget, company"),
    "rest_integrity": ("rest_integrity_norm", "forget, company"), "binding": ("binding", "retain"),
    "binding_near": ("binding", "near"),
}  # fmt: skip
PRINTED = {
    "forget": "UA", "paraphrase": "UA of paraphrases", "right": "retain_accuracy", "fid_original": "FID to the original",
    "trained": "trained parameters",
}  # fmt: skip


def settings_remark(algos: Collection[str]) -> str:
    """Of these algorithms, those whose settings for Pictoworld `make tune` did not write: by hand, or the defaults."""
    files = {name: text for name, text in tuned_files("pictoworld").items() if name in algos}
    by_hand = sorted(name for name, text in files.items() if "\n# By `make tune" not in text)
    searched = {path.stem for path in (CONF / "search").glob("*.yaml")}
    untuned = sorted(searched.intersection(algos) - files.keys())
    defaults = f"; {', '.join(untuned)} not at all, with the defaults of conf/algo/" if untuned else ""
    return f"{', '.join(by_hand)} by hand, project's after a look at these concepts{defaults}"


def tuned_settings(algos: Collection[str]) -> str:
    """The sentence on the settings of Pictoworld's leaderboards."""
    return (
        "Settings: conf/tuned/pictoworld/, chosen on other concepts, by `make tune`\n"
        f"([tuning.csv](tuning.csv); {settings_remark(algos)})."
    )


def scenes_settings(algos: Collection[str]) -> str:
    """The sentence on the settings of Pictoscenes, on which `make tune` has run for some algorithms alone."""
    files = {name: text for name, text in sorted(tuned_files("pictoscenes").items()) if name in algos}
    tuned = [name for name, text in files.items() if "\n# By `make tune" in text]
    of_pictoworld = [name for name in files if name not in tuned]
    by_trials = "for {} chosen on another concept, by `make tune` ([tuning-pictoscenes.csv](tuning-pictoscenes.csv));"
    parts = [by_trials.format(", ".join(tuned))] if tuned else []
    parts += [f"for {', '.join(of_pictoworld)} Pictoworld's;"] if of_pictoworld else []
    return "\n".join(["Settings (conf/tuned/pictoscenes/):", *parts, "for the others the defaults of conf/algo/."])


def tuned_files(domain: str) -> dict[str, str]:
    """The files of tuned settings for a model, by algorithm."""
    return {path.stem: path.read_text(encoding="utf-8") for path in (CONF / "tuned" / domain).glob("*.yaml")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """A leaderboard.

    Attributes:
        name: of its target of make and of its files in docs/.
        title: of its page.
        domain: its embedded world.
        tuned_on: the concepts on which `make tune` chooses settings for its world.
        trials: the file of these trials in docs/.
        quick: whether its runs are small (`run_overrides`).
        experiment: overrides that each run has besides algorithm, concept and seed.
        concepts: those that it runs, in the order of the page.
        seeds: those of the unlearning.
        algos: those that it runs; without any, all but `checkpoint`, which has no weights of its own.
        columns: the metric and the split of each column.
        intervals: the columns that also have `_low`, `_high` and `_n`.
        summary: the columns of the means over concepts.
        probes: the columns of rows made with --depth: a probe, and a number of its row or interval.
        printed: the heads of the columns whose names are not theirs.
        columns_note: what columns say that only this board has.
        settings_note: the sentence on the settings of these algorithms.
        links: other pages to read.
        rows_note: who can add rows.
        probes_note: what the columns of `probes` say.
    """

    name: str
    title: str
    domain: str
    tuned_on: tuple[str, ...]
    trials: str
    quick: bool = False
    experiment: tuple[str, ...] = ()
    concepts: tuple[str, ...]
    seeds: tuple[str, ...]
    algos: tuple[str, ...] = ()
    columns: Mapping[str, Measure]
    intervals: tuple[str, ...]
    summary: tuple[str, ...]
    probes: Mapping[str, Measure]
    printed: Mapping[str, str]
    columns_note: str = ""
    settings_note: Callable[[Collection[str]], str]
    links: str
    rows_note: str = ""
    probes_note: str

    @property
    def world(self) -> World:
        """The world of its model."""
        world = embedded_world(self.domain)
        assert world is not None
        return world

    @property
    def weights(self) -> str:
        """The start of the hash of its world's weights."""
        return weights_hash(self.world)[:16]

    @property
    def algorithms(self) -> list[str]:
        """The names of the algorithms that it runs."""
        return list(self.algos) or [name for name in choices("algo") if name != "checkpoint"]

    @property
    def measured(self) -> tuple[str, ...]:
        """The numbers of a row of its csv without those of the probes."""
        counts = [f"{column}_n" for column in self.intervals]
        ends = [f"{column}_{end}" for column in self.intervals for end in ("low", "high")]
        return (*counts, "forget_original", *self.columns, *ends)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers of a row of its csv."""
        return (*self.measured, *self.probes)

    @property
    def head(self) -> tuple[str, ...]:
        """The columns of its csv."""
        return ("algo", "concept", "seed", "status", *self.numbers, "settings", "weights", "device", "commit", "error")

    @property
    def probe_columns(self) -> tuple[str, ...]:
        """The columns of the probes that the page shows."""
        return tuple(name for name, (_, number) in self.probes.items() if number not in ("low", "high", "n"))

    @property
    def detections(self) -> tuple[str, ...]:
        """The columns with a detection rate, which readers see as UA."""
        return tuple(name for name, (metric, _) in self.columns.items() if metric == "forget_accuracy")

    def overrides(self, algo: str, concept: str, seed: str) -> list[str]:
        """The overrides of one of its runs; the first is that of the algorithm."""
        return [*run_overrides(algo, concept, seed, self.quick), *self.experiment]


PICTOWORLD = Board(
    name="leaderboard",
    title="Leaderboard",
    domain="pictoworld",
    tuned_on=("fish", "dotted"),
    trials="tuning.csv",
    concepts=("nudity", "church", "parachute", "van_gogh"),
    seeds=("0", "1", "2"),
    columns={**SHARED, "clip": ("clipscore", "retain"), **COST},
    intervals=("forget", "integrity"),
    summary=("forget", "integrity", "fid", "clip", "paraphrase", "near", "far", "generic", "right"),
    probes={
        "depth": (POOLED, "depth"), "text_states": (TEXT_PROBE, "unlearned"),
        "depth_low": (POOLED, "low"), "depth_high": (POOLED, "high"), "depth_n": (POOLED, "n"),
    },
    printed={**PRINTED, "fid": "FID (classifier features)", "clip": "CLIPScore (Pictoworld)"},
    settings_note=tuned_settings,
    links=(
        "Published results on other models are in\n"
        "[literature.md](literature.md); the variance of each number is in [variance.md](variance.md)."
    ),
    rows_note=" Others can add rows: CONTRIBUTING.md says how, and one command checks them.",
    probes_note=(
        "`depth` (`--depth`; [metrics.md](metrics.md#depth)), where it was measured: the part of the concept that is gone under\n"
        "probes with the empty prompt, 0 as the original, 1 as the oracle; `text_states`: the share that still shows the "
        "concept\nwhen the original's text encoder stands before the unlearned denoiser."
    ),
)  # fmt: skip
QUICK = replace(PICTOWORLD, name="leaderboard-quick", title="Quick leaderboard", quick=True, concepts=("church",), seeds=("0",))
PICTOSCENES = Board(
    name="leaderboard-pictoscenes",
    title="Leaderboard of Pictoscenes",
    domain="pictoscenes",
    tuned_on=("parachute",),
    trials="tuning-pictoscenes.csv",
    experiment=("experiment=pictoscenes",),
    concepts=("church", "red_church"),
    seeds=("0",),
    algos=(
        "none", "oracle", "blocklist", "word_swap", "negative_prompt", "noise",  # controls
        "redirect", "project", "substitute", "saddle", "surgery", "uce", "mace", "salun", "ca", "esd_x",
    ),
    columns={**SHARED, **COMPANY, **COST},
    intervals=("forget", "integrity", "rest_kept", "rest_binding", "rest_integrity"),
    summary=(
        "forget", "integrity", "company", "rest_kept", "rest_binding", "rest_integrity", "binding", "unseen", "paraphrase",
        "near", "far", "generic", "right", "fid",
    ),
    probes={
        "probed": (POOLED, "unlearned"), "probed_original": (POOLED, "original"), "depth": (POOLED, "depth"),
        "text_states": (TEXT_PROBE, "unlearned"),
        "depth_low": (POOLED, "low"), "depth_high": (POOLED, "high"), "probed_n": (POOLED, "n"),
    },
    printed={
        **PRINTED, "fid": "FID (detector features)", "company": "UA in company", "unseen": "UA of unseen words",
        "rest_integrity": "rest_integrity_norm", "binding_near": "binding (near)", "probed": "detected under probes",
        "probed_original": "detected under probes, original",
    },
    columns_note=(
        "Of forget prompts in company ([metrics.md](metrics.md#the-rest-of-an-image)): `UA in company`; `rest_kept`, the share\n"
        "of the other subjects that are still there, in place and colour; `rest_binding`, the share of images in which each of\n"
        "them has its own colour and pattern; `rest_integrity_norm`, integrity outside the concept's place (detector features).\n"
        "`binding`: the share of retain images with all subjects, colours, patterns and positions as the prompt says; the row\n"
        "`none` is the original's. `UA of unseen words`: of names of the concept that no caption of the model's training had."
    ),
    settings_note=scenes_settings,
    links="The model, its prompts and its detector: [pictoscenes.md](pictoscenes.md).",
    probes_note=(
        "`detected under probes` (`--depth`; [metrics.md](metrics.md#depth)), where it was measured: the share of images that\n"
        "still show the concept under probes with the empty prompt, and that of the original; `depth`: the part that is gone of\n"
        "what the original shows above the oracle, 0 as the original, 1 as the oracle, a model retrained without churches, nude\n"
        "people, parachutes and the style of van Gogh (red churches alone have no oracle); `text_states`: the share when the\n"
        "original's text encoder stands before the unlearned denoiser."
    ),
)  # fmt: skip
BOARDS = (PICTOWORLD, QUICK, PICTOSCENES)


@functools.cache
def is_seeded(algo: str, board: Board = PICTOWORLD) -> bool:
    """Whether the unlearning seed changes the result of an algorithm, with the settings of a board."""
    return RunSpec.of(compose(f"algo={algo}", *board.experiment)).algo.uses_seed
