"""Images that another program generated: matched to the rows of a prompt file, and laid out as a run has them."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unlearnbench.config.errors import UserError
from unlearnbench.data.image_reader import image_files, open_image, read_header
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.data.remarks import few
from unlearnbench.storage.atomic import write_bytes

NUMBERED = re.compile(r"^0*(?P<number>\d+?)(?:[_-](?P<repeat>\d+))?$")


class ImageRow(NamedTuple):
    """One image of both models: its file in each folder, its prompt, and its number among the images of this prompt."""

    original: Path
    unlearned: Path
    prompt: Prompt
    repeat: int


def match_images(original: Path, unlearned: Path, prompts: Sequence[Prompt], source: str) -> list[ImageRow]:
    """The images of two folders, in pairs of one name without its suffix, each with its prompt.

    - Names as 12.png or 12_3.png (the number of the row, and of the image of this prompt), where the rows have a
      `case_number`: by that number.
    - The same names without `case_number`, several images a row: by the number of the row, counted from 0.
    - Any other names, one image a row: in the order of their names, numbers in them as numbers.

    Args:
        original: the folder of the original model's images.
        unlearned: the folder of the unlearned model's images.
        prompts: the rows of the prompt file.
        source: the name of the prompt file, for messages.

    Raises:
        UserError: the folders do not hold the same images, or they do not match the rows.
    """
    left, right = _by_stem(original), _by_stem(unlearned)
    for folder, names in ((original, sorted(right.keys() - left.keys())), (unlearned, sorted(left.keys() - right.keys()))):
        if names:
            other = unlearned if folder == original else original
            raise UserError(f"{folder}: no image for {few(names)} of {other}; both folders must hold the same names")
    stems = sorted(left, key=_natural)
    places = _places(stems, prompts, original, source)
    rows = [ImageRow(left[stem], right[stem], prompts[row], repeat) for stem, (row, repeat) in zip(stems, places, strict=True)]
    return sorted(rows, key=lambda row: row.repeat)  # as a run has them: the first image of every prompt, then the second


def _by_stem(folder: Path) -> dict[str, Path]:
    files = image_files(folder)
    counts = Counter(file.stem for file in files)
    if twice := [stem for stem, count in counts.items() if count > 1]:
        raise UserError(f"{folder}: several images are called {few(twice)}; remove one of each")
    return {file.stem: file for file in files}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _places(stems: Sequence[str], prompts: Sequence[Prompt], folder: Path, source: str) -> list[tuple[int, int]]:
    """The row of each image, and its number among the images of this row."""
    matches = [NUMBERED.match(stem) for stem in stems]
    numbered = [(int(m["number"]), int(m["repeat"] or 0)) for m in matches if m]
    cases = [prompt.case_number for prompt in prompts]
    has_cases = None not in cases
    if len(numbered) == len(stems) and (has_cases or len(stems) != len(prompts)):
        if has_cases and (twice := [str(case) for case, count in Counter(cases).items() if count > 1]):
            raise UserError(f"{source}: case_number {few(twice)} stands twice; each row needs its own")
        known = {case: row for row, case in enumerate(cases)} if has_cases else {row: row for row in range(len(prompts))}
        what = "case_number" if has_cases else "row, counted from 0,"
        if unknown := [stem for stem, (number, _) in zip(stems, numbered, strict=True) if number not in known]:
            raise UserError(f"{folder}: no {what} of {source} for {few(unknown)}; {len(stems)} images, {len(prompts)} rows")
        counts = Counter(number for number, _ in numbered)
        if without := [str(number) for number in known if number not in counts]:
            raise UserError(f"{folder}: no image of {what} {few(without)} of {source}; {len(stems)} images, {len(prompts)} rows")
        if len(set(counts.values())) > 1:
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            reason = f"{what} {most} has {counts[most]} images, {least} has {counts[least]}"
            raise UserError(f"{folder}: {reason}; every row needs equally many")
        order = {number: sorted(r for n, r in numbered if n == number) for number in known}
        return [(known[number], order[number].index(repeat)) for number, repeat in numbered]
    if len(stems) != len(prompts):
        repair = "name several images of a row 0_0.png, 0_1.png, 1_0.png, ..."
        raise UserError(f"{folder}: {len(stems)} images, {len(prompts)} rows in {source}; one image a row, or {repair}")
    return [(row, 0) for row in range(len(stems))]


def image_size(rows: Sequence[ImageRow]) -> int:
    """The side of the images in pixels.

    Raises:
        UserError: they have different sizes, or are not square.
    """
    sizes: dict[tuple[int, int], Path] = {}
    for row in rows:
        for path in (row.original, row.unlearned):
            sizes.setdefault(_size(path), path)
    if len(sizes) > 1:
        (one, first), (two, second), *_ = sizes.items()
        texts = [f"{path} has {width} x {height} pixels" for (width, height), path in ((one, first), (two, second))]
        raise UserError(f"{' and '.join(texts)}; all images of both folders must have one size")
    [((width, height), path)] = sizes.items()
    if width != height:
        raise UserError(f"{path}: {width} x {height} pixels; images must be square: crop them")
    return width


def _size(path: Path) -> tuple[int, int]:
    if read_header(path).changed:  # turned upright, maybe
        height, width = open_image(path).shape[:2]
        return width, height
    with Image.open(path) as image:
        return image.size


def copy_images(
    rows: Sequence[ImageRow], original: Path, unlearned: Path, advance: Callable[[int], None] = lambda count: None
) -> tuple[Images, Images]:
    """Copy images to two folders of a run, under the names 00000.png, ..., each with its index.

    A PNG that is read without a change becomes a hard link where the file system allows it; other files become PNG.

    Args:
        rows: the images.
        original: the new folder of the original model's images.
        unlearned: the new folder of the unlearned model's images.
        advance: called with the number of rows after each.
    """
    seeds = _seeds(rows)
    folders = Images(original, []), Images(unlearned, [])
    records: tuple[list[ImageRecord], list[ImageRecord]] = ([], [])
    for folder in (original, unlearned):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        for images, of_side, source in zip(folders, records, (row.original, row.unlearned), strict=True):
            name, prompt = f"{number:05d}.png", row.prompt
            sha256 = _copy(source, images.folder / name)
            of_side.append(ImageRecord(name, prompt.text, prompt.split, prompt.label, seed, sha256, dict(prompt.columns)))
        advance(1)
    for images, of_side in zip(folders, records, strict=True):
        images.add(of_side)
    return folders


def _seeds(rows: Sequence[ImageRow]) -> list[int]:
    """A seed for each image: the row's own for its first image, else one that no other image of the same prompt has."""
    counts: Counter[tuple[str, str, int | None]] = Counter()
    seeds = []
    for row in rows:
        key = row.prompt.split, row.prompt.text, row.prompt.seed
        seeds.append(image_seed(0, row.prompt, counts[key]))
        counts[key] += 1
    return seeds


def _copy(source: Path, target: Path) -> str:
    """Copy one image; returns the hash of the new file."""
    with Image.open(source) as image:
        plain = image.format == "PNG" and image.mode == "RGB" and not read_header(source).changed
    if plain:
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
        return hashlib.sha256(target.read_bytes()).hexdigest()
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(open_image(source))).save(data, "png", compress_level=4)
    write_bytes(target, data.getvalue())
    return hashlib.sha256(data.getvalue()).hexdigest()


def split_counts(rows: Sequence[ImageRow]) -> Mapping[str, int]:
    """How many images each split has."""
    return Counter(row.prompt.split for row in rows)
