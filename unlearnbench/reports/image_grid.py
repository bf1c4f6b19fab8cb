"""The picture of a run: the same prompts and seeds by the original and by the unlearned model, one above the other."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import RETAIN_SPLITS

CELL, GAP, MARGIN, TEXT = 128, 8, 92, 56
T = TypeVar("T")


def image_grid(before: Images, after: Images, columns: int = 6, blur: Collection[str] = ()) -> Image.Image:
    """Evenly chosen prompts of every split, none picked for its looks.

    Args:
        before: the original's images.
        after: the unlearned model's, of the same prompts and seeds.
        columns: prompts of each split.
        blur: splits whose images are made unrecognisable.
    """
    splits = [*dict.fromkeys(shot.split for shot in before.where("forget")), *(s for s in RETAIN_SPLITS if len(before.where(s)))]
    height = 2 * CELL + TEXT + 2 * GAP
    most = max(min(columns, len({shot.prompt for shot in before.where(s)})) for s in splits)
    sheet = Image.new("RGB", (MARGIN + most * (CELL + GAP), len(splits) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, split in enumerate(splits):
        top = GAP + row * height
        pen.text((GAP, top + CELL - 6), split.replace(": ", "\n"), "black", ImageFont.load_default(16))
        for line, name in enumerate(("original", "unlearned")):
            pen.text((GAP, top + line * CELL + (CELL - 34 if line else 24)), name, "gray", ImageFont.load_default(13))
        pairs = evenly_spaced(first_of_each_prompt(list(zip(before.where(split), after.where(split), strict=True))), columns)
        for column, pair in enumerate(pairs):
            left = MARGIN + column * (CELL + GAP)
            for line, (images, shot) in enumerate(zip((before, after), pair, strict=True)):
                sheet.paste(_cell(images, shot, split in blur), (left, top + line * (CELL + 3)))
            told = textwrap.wrap(pair[0].prompt, 22)[:4]
            pen.multiline_text((left, top + 2 * CELL + 6), "\n".join(told), "black", ImageFont.load_default(11), spacing=1)
    return sheet


def image_strips(
    names: Sequence[str], columns: Sequence[tuple[Sequence[tuple[Images, ImageRecord]], str]], blur: bool = False
) -> Image.Image:
    """Pictures of the same prompt and seed one above the other, under each column a text.

    Args:
        names: of the rows.
        columns: for each column its images, a row each, and its text.
        blur: make the images unrecognisable.
    """
    height = len(names) * (CELL + 3)
    sheet = Image.new("RGB", (MARGIN + len(columns) * (CELL + GAP), height + 2 * TEXT), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        pen.text((GAP, GAP + row * (CELL + 3) + CELL // 2), name, "gray", ImageFont.load_default(13))
    for column, (shots, told) in enumerate(columns):
        left = MARGIN + column * (CELL + GAP)
        for row, (images, shot) in enumerate(shots):
            sheet.paste(_cell(images, shot, blur), (left, GAP + row * (CELL + 3)))
        lines = textwrap.wrap(told, 22)[:7]
        pen.multiline_text((left, GAP + height + 3), "\n".join(lines), "black", ImageFont.load_default(11), spacing=1)
    return sheet


def first_of_each_prompt(pairs: Sequence[tuple[ImageRecord, ImageRecord]]) -> list[tuple[ImageRecord, ImageRecord]]:
    """The first pair of every prompt."""
    first: dict[str, tuple[ImageRecord, ImageRecord]] = {}
    for pair in pairs:
        first.setdefault(pair[1].prompt, pair)
    return list(first.values())


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count`, at even distances: none is picked for its looks."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _cell(images: Images, shot: ImageRecord, blur: bool) -> Image.Image:
    with Image.open(images.folder / shot.file) as file:
        picture = file.convert("RGB")
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 8))
    small = picture.width < CELL
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
