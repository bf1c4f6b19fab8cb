"""Runs as one HTML file that needs no other: numbers, plots, pictures sorted by damage, settings, how to make it again."""

from __future__ import annotations

import base64
import io
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from unlearnbench.__about__ import __version__
from unlearnbench.config.errors import UserError
from unlearnbench.console import format_number, progress_bar
from unlearnbench.data.images import ImageRecord, Images, open_image
from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.reports.comparison import Comparison, compare
from unlearnbench.reports.image_grid import evenly_spaced, first_of_each_prompt
from unlearnbench.reports.paired_test import per_image_distances
from unlearnbench.reports.plots import X_LABEL, read_losses
from unlearnbench.reports.svg_plots import Axis, Curve, Histogram, histograms, loss_curve, planes
from unlearnbench.reports.tables import ARROWS, TABLE_HEAD, table_names, table_remarks, table_rows
from unlearnbench.results.run import Run, Value
from unlearnbench.results.settings import differing_settings, flatten
from unlearnbench.storage.atomic import write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")
SIDE, QUALITY = 128, 85
PAIRS_IN_ALL = 96
SIDE_BY_SIDE = 8
KEYS = (("forget_accuracy", "forget"), ("integrity_norm", "retain"), ("integrity", "retain"), ("retain_accuracy", "retain"))


@dataclass(frozen=True)
class Pair:
    """A prompt's picture by the original and by the unlearned model."""

    prompt: str
    split: str
    distance: float | None
    before: str
    after: str
    veiled: bool


@dataclass
class Section:
    """What the report shows of one run."""

    run: Run
    label: str
    command: str
    keys: list[Value]
    tables: list[tuple[str, list[list[str]], str]]
    distance: str = ""
    worst: list[Pair] = field(default_factory=list)
    forget: list[Pair] = field(default_factory=list)
    histograms: tuple[Axis, list[Histogram]] | None = None
    loss: Curve | None = None
    missing: str = ""


def write_report(runs: Sequence[Run], path: Path, images: int | None = None, unblur: bool = False) -> None:
    """Write the report.

    Args:
        runs: done, failed or unfinished.
        path: the file, replaced if it is there.
        images: pairs of retain prompts and pairs of forget prompts shown of each run; None for 12, fewer of many.
        unblur: show the pictures that an explicit concept's prompts asked for at once.

    Raises:
        UserError: the file cannot be written.
    """
    count = max(2, min(12, PAIRS_IN_ALL // len(runs))) if images is None else images
    made = compare(runs)
    labels = made.labels()
    sections = []
    with progress_bar("report", len(runs)) as shown:
        for run, name in zip(runs, labels, strict=True):
            sections.append(section(run, name, count, unblur))
            shown.advance(remark=name)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"number": format_number, "arrow": ARROWS, "head": TABLE_HEAD, "x_label": X_LABEL}
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=runs[0].name if len(runs) == 1 else f"{', '.join(dict.fromkeys(run.concept for run in runs))}: {len(runs)} runs",
        made=time.strftime("%Y-%m-%d %H:%M"), version=__version__, comparison=made, labels=labels,
        original=original(made), planes=planes(runs, labels), sections=sections, differing=settings(runs),
        environment=surroundings(runs), shared=side_by_side(runs, labels, unblur) if len(runs) > 1 and count else [],
        command=shlex.join(["unlearnbench", "report", *(str(run.folder) for run in runs), "-o", str(path)]),
    )  # fmt: skip
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def original(made: Comparison) -> list[float | None]:
    """The original model's numbers under the comparison's, where all runs agree on them."""
    found = []
    for v in made.measures:
        values = {
            w.original for row in made.rows for w in row.runs[0].values if (w.metric, w.split) == (v.metric, v.split)
        }  # fmt: skip
        found.append(values.pop() if len(values) == 1 else None)
    return found


# --- pictures -----------------------------------------------------------------------------------------------------------


def thumbnail(path: Path) -> str:
    """A picture, at most `SIDE` pixels wide and high, as a data: address."""
    picture = Image.fromarray(open_image(path))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "webp", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def veiled(run: Run, split: str) -> bool:
    """Whether these prompts ask for an explicit concept."""
    base, _, name = split.partition(": ")
    concept: dict[str, Any] = run.log["config"]["concept"]
    return base in ("forget", "paraphrase") and bool(concept.get("of", {}).get(name, concept).get("explicit", True))


def section(run: Run, name: str, count: int, unblur: bool) -> Section:
    """Collect what one run has to show; what it lacks, having failed or lost its images, is left out."""
    keys = [v for metric, split in KEYS for v in run.values if (v.metric, v.split) == (metric, split)]
    tables = [(t, cells, table_remarks(run, t)) for t in table_names(run) if (cells := table_rows(run, t))]
    command = shlex.join(["unlearnbench", "run", *run.log.get("overrides", [])])
    made = Section(run, name, command, keys, tables, loss=loss_curve(read_losses(run.folder)))
    before, after = (Images(run.folder / "images" / side) for side in ("before", "after"))
    at = {(shot.prompt, shot.seed): shot for shot in before}
    pairs = [(left, shot) for shot in after if (left := at.get((shot.prompt, shot.seed)))]
    apart = next(iter(per_image_distances(run.folder).items()), ("", {}))
    made.distance, distances = apart
    by_split = {split: [distances[s.file] for s in after if s.split == split and s.file in distances] for split in RETAIN_SPLITS}
    made.histograms = histograms({split: values for split, values in by_split.items() if values})
    there = [p for p in pairs if (before.folder / p[0].file).is_file() and (after.folder / p[1].file).is_file()]
    if len(there) < len(after) or not there:
        made.missing = f"{len(after) - len(there)} of {len(after)} pictures are no longer in its folder." if len(after) else ""
    show = partial(_pair, run, before, after, distances, unblur)
    kept = [p for p in there if p[1].split in RETAIN_SPLITS]
    if distances:
        kept = first_of_each_prompt(sorted(kept, key=lambda p: -distances.get(p[1].file, -1.0)))[:count]
    else:
        kept = evenly_spaced(first_of_each_prompt(kept), count)
    made.worst = [show(p) for p in kept]
    made.forget = [
        show(p) for p in evenly_spaced(first_of_each_prompt([p for p in there if p[1].split.startswith("forget")]), count)
    ]
    return made


def _pair(
    run: Run, before: Images, after: Images, distances: dict[str, float], unblur: bool, pair: tuple[ImageRecord, ImageRecord]
) -> Pair:
    left, right = pair
    return Pair(
        right.prompt, right.split, distances.get(right.file), thumbnail(before.folder / left.file),
        thumbnail(after.folder / right.file), veiled(run, right.split) and not unblur,
    )  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """The same prompts and seeds by the original and by several runs."""

    concept: str
    labels: list[str]
    rows: list[tuple[str, str, bool, str, list[tuple[str, float | None]]]]


def side_by_side(runs: Sequence[Run], labels: Sequence[str], unblur: bool) -> list[Shared]:
    """For runs that unlearned the same from the same model: a few prompts of every split, evenly chosen, by each of them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, run in enumerate(runs):
        if run.log["status"] == "done" and (run.folder / "images" / "after" / "index.jsonl").is_file():
            groups.setdefault((run.concept, run.log["fingerprint"]), []).append(i)
    found = []
    for (concept, _), chosen in groups.items():
        sides = [{(s.prompt, s.seed): s for s in Images(runs[i].folder / "images" / "after")} for i in chosen]
        before = Images(runs[chosen[0]].folder / "images" / "before")
        common = [s for s in before if all((s.prompt, s.seed) in side for side in sides) and (before.folder / s.file).is_file()]
        splits = [s for s in dict.fromkeys(shot.split for shot in common) if not s.startswith("paraphrase")]
        if len(chosen) < 2 or not splits:
            continue
        each = max(1, SIDE_BY_SIDE // len(splits))
        first = [evenly_spaced(first_of_each_prompt([(s, s) for s in common if s.split == split]), each) for split in splits]
        apart = [next(iter(per_image_distances(runs[i].folder).values()), {}) for i in chosen]
        rows = []
        for shot in (shot for pairs in first for shot, _ in pairs):
            cells = []
            for i, side, distances in zip(chosen, sides, apart, strict=True):
                other = side[shot.prompt, shot.seed]
                path = runs[i].folder / "images" / "after" / other.file
                cells.append((thumbnail(path) if path.is_file() else "", distances.get(other.file)))
            hidden = veiled(runs[chosen[0]], shot.split) and not unblur
            rows.append((shot.prompt, shot.split, hidden, thumbnail(before.folder / shot.file), cells))
        found.append(Shared(concept, [labels[i] for i in chosen], rows))
    return found


# --- where it was made --------------------------------------------------------------------------------------------------


def settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, with those that only some of their algorithms have."""
    flat = [flatten(run.log["config"]) for run in runs]
    own = {key for one in flat for key in one if key.startswith("algo.") and not all(key in other for other in flat)}
    keys = sorted(key for key in {*differing_settings(flat), *own} if key != "algo.name" and not key.endswith("_target_"))
    return [(key, [str(one.get(key, "")) for one in flat]) for key in keys]


def surroundings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What each run was made with, by name: one value where all runs that say it say the same, else one for each."""
    rows = []
    for run in runs:
        log = run.log
        row = {
            "started": log.get("started", "")[:16].replace("T", " "),
            "seconds": f"{log['seconds']:.0f}" if "seconds" in log else "",
            "device": log.get("device"), "model": log["config"].get("model", {}).get("path"),
            "model's hash": log.get("fingerprint", "")[:12], "scheduler": log.get("scheduler"),
            "commit": (commit := log.get("git") or "")[:12] + "+" * commit.endswith("+"), **log.get("versions", {}),
        }  # fmt: skip
        rows.append({key: str(value) for key, value in row.items() if value})
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = [(key, [row.get(key, "") for row in rows]) for key in keys]
    return [(key, list(said)[:1] if len(said := {*values} - {""}) == 1 else values) for key, values in columns]
