"""Images in the report: pairs by the original and the unlearned model, and the same prompts by several runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from unlearnbench.data.image_reader import open_image
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import FORGET_SPLITS, RETAIN_SPLITS
from unlearnbench.reports.image_grid import RecordPair, evenly_spaced, first_of_each_prompt
from unlearnbench.reports.paired_test import per_image_distances
from unlearnbench.results.run import Run

SIDE, QUALITY = 128, 85  # the largest side on the page in CSS pixels
SHARED_PROMPTS = 8  # prompts that are shown side by side for several runs


@dataclass(frozen=True)
class ImagePair:
    """Two images of one prompt and seed.

    Attributes:
        prompt: the prompt.
        split: its split.
        distance: between the two images; None if it was not measured.
        original: the original model's image.
        unlearned: the unlearned model's.
        blurred: blur both until the reader clicks.
    """

    prompt: str
    split: str
    distance: float | None
    original: Thumbnail
    unlearned: Thumbnail
    blurred: bool


class Thumbnail(NamedTuple):
    """An image for the page.

    Attributes:
        url: the image, as a data: URL.
        width: on the page, in CSS pixels; a small image has the largest whole multiple of its own that fits `SIDE`.
        height: likewise.
        enlarged: its pixels are shown as squares.
    """

    url: str
    width: int
    height: int
    enlarged: bool


def sheet_url(path: Path) -> str:
    """A sheet of images whole, as a data: URL; "" if the file is not there."""
    if not path.is_file():
        return ""
    data = io.BytesIO()
    Image.fromarray(open_image(path)).save(data, "webp", quality=QUALITY, method=6)
    return _data_url(data)


def thumbnail(path: Path) -> Thumbnail:
    """An image of at most `SIDE` x `SIDE` pixels; one that is smaller keeps each pixel as it is."""
    image = Image.fromarray(open_image(path))
    factor, data = SIDE // max(image.size), io.BytesIO()
    if factor:
        image.save(data, "webp", lossless=True, method=6)
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(data, "webp", quality=QUALITY, method=6)
    return Thumbnail(_data_url(data), image.width * max(1, factor), image.height * max(1, factor), factor > 1)


def _data_url(webp: io.BytesIO) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp.getvalue()).decode()


def is_explicit(run: Run, split: str) -> bool:
    """Whether the prompts of a split ask for an explicit concept."""
    kind, _, name = split.partition(": ")
    concept: dict[str, Any] = run.log["config"]["concept"]
    return kind in FORGET_SPLITS and bool(concept.get("of", {}).get(name, concept).get("explicit", True))


@dataclass(frozen=True)
class RunImages:
    """The images of a run that the report can show.

    Attributes:
        run: the run.
        unblur: do not blur the images of explicit prompts.
    """

    run: Run
    unblur: bool = False

    @cached_property
    def original(self) -> Images:
        """The original model's images."""
        return Images(self.run.folder / "images" / "before")

    @cached_property
    def unlearned(self) -> Images:
        """The unlearned model's images."""
        return Images(self.run.folder / "images" / "after")

    @cached_property
    def first_distance(self) -> tuple[str, dict[str, float]]:
        """The name of the first distance that was measured, and its values by file; empty if none was."""
        return next(iter(per_image_distances(self.run.folder).items()), ("", {}))

    @cached_property
    def pairs(self) -> list[RecordPair]:
        """The images of the same prompt and seed by both models, where both files exist."""
        originals = {(record.prompt, record.seed): record for record in self.original}
        pairs = [(originals[key], r) for r in self.unlearned if (key := (r.prompt, r.seed)) in originals]
        folders = self.original.folder, self.unlearned.folder
        return [(a, b) for a, b in pairs if (folders[0] / a.file).is_file() and (folders[1] / b.file).is_file()]

    def missing(self) -> str:
        """A sentence on the images whose files are missing; empty if there are none."""
        total = len(self.unlearned)
        count = total - len(self.pairs)
        return f"{count} of {total} images are missing from the run's folder." if count else ""

    def distances_by_split(self) -> dict[str, list[float]]:
        """The distances of the images of each retain split that has some."""
        _, distances = self.first_distance
        by_split = {
            split: [distances[r.file] for r in self.unlearned.where(split) if r.file in distances] for split in RETAIN_SPLITS
        }
        return {split: values for split, values in by_split.items() if values}

    def retain_pairs(self, count: int) -> list[ImagePair]:
        """Retain prompts, each by its largest distance, in falling order; evenly spaced ones if no distance was measured."""
        _, distances = self.first_distance
        pairs = [pair for pair in self.pairs if pair[1].split.partition(":")[0] in RETAIN_SPLITS]
        if distances:
            pairs = first_of_each_prompt(sorted(pairs, key=lambda pair: -distances.get(pair[1].file, -1.0)))[:count]
        else:
            pairs = evenly_spaced(first_of_each_prompt(pairs), count)
        return [self._image_pair(pair) for pair in pairs]

    def forget_pairs(self, count: int) -> list[ImagePair]:
        """Evenly spaced forget prompts."""
        pairs = first_of_each_prompt([pair for pair in self.pairs if pair[1].split.startswith("forget")])
        return [self._image_pair(pair) for pair in evenly_spaced(pairs, count)]

    def is_blurred(self, split: str) -> bool:
        """Whether images of a split are blurred."""
        return is_explicit(self.run, split) and not self.unblur

    def _image_pair(self, pair: RecordPair) -> ImagePair:
        original, unlearned = pair
        return ImagePair(
            prompt=unlearned.prompt,
            split=unlearned.split,
            distance=self.first_distance[1].get(unlearned.file),
            original=thumbnail(self.original.folder / original.file),
            unlearned=thumbnail(self.unlearned.folder / unlearned.file),
            blurred=self.is_blurred(unlearned.split),
        )


@dataclass(frozen=True)
class SharedPrompt:
    """One prompt and seed by the original model and by several unlearned ones.

    Attributes:
        prompt: the prompt.
        split: its split.
        blurred: blur its images until the reader clicks.
        original: the original model's image.
        cells: for each run its image, None if the file is missing, and the distance to the original's, None if not measured.
    """

    prompt: str
    split: str
    blurred: bool
    original: Thumbnail
    cells: list[tuple[Thumbnail | None, float | None]]


@dataclass(frozen=True)
class SharedPrompts:
    """Prompts side by side for the runs with these labels, which unlearned one concept from one model."""

    concept: str
    labels: list[str]
    rows: list[SharedPrompt]


def shared_prompts(runs: Sequence[Run], labels: Sequence[str], unblur: bool) -> list[SharedPrompts]:
    """Some prompts of every split side by side, for each group of runs with one concept and one original model."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, run in enumerate(runs):
        if run.log["status"] == "done" and (run.folder / "images" / "after" / "index.jsonl").is_file():
            groups.setdefault((run.concept, run.log["fingerprint"]), []).append(i)
    result = []
    for (concept, _), indices in groups.items():
        rows = _shared_rows([RunImages(runs[i], unblur) for i in indices]) if len(indices) > 1 else []
        if rows:
            result.append(SharedPrompts(concept, [labels[i] for i in indices], rows))
    return result


def _shared_rows(runs: Sequence[RunImages]) -> list[SharedPrompt]:
    by_key = [{(record.prompt, record.seed): record for record in run.unlearned} for run in runs]
    original = runs[0].original
    rows = []
    for record in _shared_records(original, [set(records) for records in by_key]):
        cells = []
        for run, records in zip(runs, by_key, strict=True):
            other = records[record.prompt, record.seed]
            path = run.unlearned.folder / other.file
            cells.append((thumbnail(path) if path.is_file() else None, run.first_distance[1].get(other.file)))
        image, blurred = thumbnail(original.folder / record.file), runs[0].is_blurred(record.split)
        rows.append(SharedPrompt(record.prompt, record.split, blurred, image, cells))
    return rows


def _shared_records(original: Images, keys: Sequence[set[tuple[str, int]]]) -> list[ImageRecord]:
    """Evenly spaced images of every split but paraphrases and descriptions, of the prompts and seeds that all runs have."""
    common = [
        record
        for record in original
        if all((record.prompt, record.seed) in there for there in keys) and (original.folder / record.file).is_file()
    ]
    splits = [split for split in dict.fromkeys(record.split for record in common) if not split.startswith(FORGET_SPLITS[1:])]
    records: list[ImageRecord] = []
    for split in splits:
        pairs = first_of_each_prompt([(record, record) for record in common if record.split == split])
        records += [record for record, _ in evenly_spaced(pairs, max(1, SHARED_PROMPTS // len(splits)))]
    return records
