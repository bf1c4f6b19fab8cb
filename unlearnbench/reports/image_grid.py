"""Image sheets of a run: the original's and the unlearned model's images of the same prompts and seeds, one above the other."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from unlearnbench.data.image_reader import open_image
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import RETAIN_SPLITS

CELL, GAP, MARGIN, CAPTION_HEIGHT = 128, 8, 92, 56
T = TypeVar("T")
RecordPair = tuple[ImageRecord, ImageRecord]  # by the original and by the unlearned model


def image_grid(original_images: Images, unlearned_images: Images, columns: int = 6, blur: Collection[str] = ()) -> Image.Image:
    """Evenly spaced prompts of every split, not selected by their images.

    Args:
        original_images: the original model's images.
        unlearned_images: the unlearned model's, of the same prompts and seeds.
        columns: prompts of each split.
        blur: splits whose images are blurred beyond recognition.
    """
    splits = _grid_splits(original_images)
    height = 2 * CELL + CAPTION_HEIGHT + 2 * GAP
    widest = max(min(columns, len({record.prompt for record in original_images.where(split)})) for split in splits)
    sheet = Image.new("RGB", (MARGIN + widest * (CELL + GAP), len(splits) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, split in enumerate(splits):
        top = GAP + row * height
        pen.text((GAP, top + CELL - 6), split.replace(": ", "\n"), "black", ImageFont.load_default(16))
        for line, name in enumerate(("original", "unlearned")):
            pen.text((GAP, top + line * CELL + (CELL - 34 if line else 24)), name, "gray", ImageFont.load_default(13))
        pairs = list(zip(original_images.where(split), unlearned_images.where(split), strict=True))
        for column, pair in enumerate(evenly_spaced(first_of_each_prompt(pairs), columns)):
            left = MARGIN + column * (CELL + GAP)
            for line, (images, record) in enumerate(zip((original_images, unlearned_images), pair, strict=True)):
                sheet.paste(_cell(images, record, split in blur), (left, top + line * (CELL + 3)))
            _caption(pen, (left, top + 2 * CELL + 6), pair[0].prompt, 4)
    return sheet


def _grid_splits(images: Images) -> list[str]:
    """The splits of forget prompts, then those retain splits that have images."""
    forget = dict.fromkeys(record.split for record in images.where("forget"))
    return [*forget, *(split for split in RETAIN_SPLITS if len(images.where(split)))]


def image_strips(
    names: Sequence[str], columns: Sequence[tuple[Sequence[tuple[Images, ImageRecord]], str]], blur: bool = False
) -> Image.Image:
    """Images of the same prompt and seed one above the other, with a caption below each column.

    Args:
        names: of the rows.
        columns: for each column its images, one a row, and its caption.
        blur: blur the images beyond recognition.
    """
    height = len(names) * (CELL + 3)
    sheet = Image.new("RGB", (MARGIN + len(columns) * (CELL + GAP), height + 2 * CAPTION_HEIGHT), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        pen.text((GAP, GAP + row * (CELL + 3) + CELL // 2), name, "gray", ImageFont.load_default(13))
    for column, (records, caption) in enumerate(columns):
        left = MARGIN + column * (CELL + GAP)
        for row, (images, record) in enumerate(records):
            sheet.paste(_cell(images, record, blur), (left, GAP + row * (CELL + 3)))
        _caption(pen, (left, GAP + height + 3), caption, 7)
    return sheet


def captioned_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 5) -> Image.Image:
    """Images with the caption of each below it, row by row.

    Args:
        images: uint8, each (h, w, 3).
        captions: that of each image.
        columns: images in a row.
    """
    height = CELL + 2 * CAPTION_HEIGHT
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + -(-len(images) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (CELL + GAP), GAP + row * height
        sheet.paste(_enlarged(Image.fromarray(image)), (left, top))
        _caption(pen, (left, top + CELL + 3), caption, 8)
    return sheet


def first_of_each_prompt(pairs: Sequence[RecordPair]) -> list[RecordPair]:
    """The first pair of every prompt."""
    first: dict[str, RecordPair] = {}
    for pair in pairs:
        first.setdefault(pair[1].prompt, pair)
    return list(first.values())


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at equal distances."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _caption(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, lines: int) -> None:
    wrapped = "\n".join(textwrap.wrap(text, 22)[:lines])
    pen.multiline_text(place, wrapped, "black", ImageFont.load_default(11), spacing=1)


def _cell(images: Images, record: ImageRecord, blur: bool) -> Image.Image:
    image = Image.fromarray(open_image(images.folder / record.file))
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(image.width / 8))
    return _enlarged(image)


def _enlarged(image: Image.Image) -> Image.Image:
    method = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.LANCZOS
    return ImageOps.pad(image, (CELL, CELL), method, "white")
