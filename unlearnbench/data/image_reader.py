"""The one reader of images: upright, 8 bits, on white, the first frame; and the images of a folder."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from unlearnbench.config.errors import UserError, first_line
from unlearnbench.data.remarks import few, remark

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT_SUFFIXES = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".yaml", ".yml", ".npz", ".db", ".ini")
UPRIGHT, ORIENTATION = 1, 0x0112  # of the EXIF tag


class Header(NamedTuple):
    """What a file says of its image.

    Attributes:
        problem: why it cannot be read, "" where no more is known than that it cannot; None if it can.
        transparent: it has an alpha channel, or a transparent colour.
        animated: it has several frames or pages.
        changed: it is read in another way than Pillow's conversion to RGB.
    """

    problem: str | None
    transparent: bool = False
    animated: bool = False
    changed: bool = False


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name. What is left out, flattened or cut to its first frame is named in a warning.

    Raises:
        UserError: no such folder, no image, or broken images; the message counts and names them.
    """
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(
            f"{folder}: " + ("no .png, .jpg, .webp, .bmp, .gif or .tif image in it" if folder.is_dir() else "no such folder")
        )
    headers = {file: read_header(file) for file in files}
    refuse_broken(folder, {file: h.problem for file, h in headers.items() if h.problem is not None}, len(files))
    others = sorted(set(folder.iterdir()) - set(files))
    others = [path for path in others if path.suffix.lower() not in TEXT_SUFFIXES and not path.name.startswith(".")]
    for names, text in (
        ([path.name + "/" * path.is_dir() for path in others], "left out, for they are no images that are read"),
        ([file.name for file in files if headers[file].transparent], "transparent; flattened on white"),
        ([file.name for file in files if headers[file].animated], "animated or of several pages; only the first is read"),
    ):
        if names:
            remark(folder, f"{len(names)} {text}: {few(names)}")
    return files


def read_header(path: Path) -> Header:
    """What the file says of its image, and whether it is whole; remembered as long as it does not change."""
    stat = path.stat()
    return _read_header(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2**17)
def _read_header(path: Path, changed: int, size: int) -> Header:
    try:
        with _opened(path) as image:
            transparent, animated = image.has_transparency_data, image.format != "MPO" and getattr(image, "is_animated", False)
            if image.mode in ("F", "I"):
                return Header("32 bits a pixel; save it with 8 or 16")
            has_exif = image.format != "PNG" or "exif" in image.info  # Pillow decodes a whole PNG to look for it at the end
            rotated = has_exif and _orientation(image) != UPRIGHT
            header = Header(None, transparent, animated, transparent or rotated or image.mode.startswith("I;16"))
        with _opened(path) as image:
            if image.format == "PNG":
                image.verify()
            else:  # for other formats Pillow's `verify` looks at nothing, so they are decoded, JPEG at the smallest scale
                image.draft("RGB", (1, 1))
                image.load()
    except Exception as error:  # Pillow's decoders let a damaged file raise anything
        return Header(_known_problem(error))
    return header


@contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd palettes and metadata; what is changed or left out is said in a remark
        with Image.open(source) as image:
            yield image


def _known_problem(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"above Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; make it smaller"
    if "MAX_TEXT" in str(error):
        return "a text chunk above Pillow's limit; save it without metadata"
    return ""


def refuse_broken(folder: Path, broken: Mapping[Path, str], count: int) -> None:
    """Check that a folder of `count` images has no broken ones, which are given with their problem, "" if it is not known.

    Raises:
        UserError: it has; the message counts and names them.
    """
    if broken:
        names = few([path.name + (f" ({problem})" if problem else "") for path, problem in broken.items()])
        raise UserError(f"{folder}: {len(broken)} of {count} images cannot be read; repair or remove {names}")


def open_image(path: Path, size: int | None = None) -> np.ndarray:
    """An image as uint8 (h, w, 3), cropped to its centre square and resized if a size is given.

    It is turned upright by its EXIF orientation, 16 bits of gray are scaled to 8, transparency is flattened on white, and of
    several frames the first is read.

    Raises:
        UserError: it cannot be read; the message names the file.
    """
    try:
        with _opened(path) as file:
            if file.mode in ("F", "I"):
                raise ValueError("32 bits a pixel; save it with 8 or 16")
            image = _to_rgb(_upright(file))
    except Exception as error:  # Pillow's decoders let a damaged file raise anything
        reason = _known_problem(error) or first_line(error)
        raise UserError(f"{path}: not a readable image ({reason})") from error
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.array(image)


def image_size(path: Path) -> tuple[int, int]:
    """The width and height in the file's header; 512 each if it cannot be read."""
    try:
        with _opened(path) as image:
            return image.size
    except Exception:  # Pillow's decoders let a damaged file raise anything
        return 512, 512


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == UPRIGHT else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; upright where the metadata of a whole image cannot be read."""
    try:
        return image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:
        return UPRIGHT


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        pixels = np.array(image).astype(np.float64)
        if isinstance(clear := image.info.get("transparency"), int):
            pixels[pixels == clear] = 65535
        return Image.fromarray(np.rint(pixels / 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    white.alpha_composite(layers)
    return white.convert("RGB")


def reading_key(files: Sequence[Path]) -> list[list[object]]:
    """For keys of the cache: path, size and time of each file, and a mark where it is not read by a mere conversion to RGB."""
    marks = [["upright, 8 bits, on white"] if read_header(file).changed else [] for file in files]
    stats = [(str(file), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns, *mark] for (name, stat), mark in zip(stats, marks, strict=True)]


def image_format(path: Path) -> str:
    """Pillow's name of the format that a file's suffix, one of `SUFFIXES`, stands for."""
    return Image.registered_extensions()[path.suffix.lower()]


def image_suffix(data: bytes) -> str:
    """The suffix for a file of this image, of those that `image_files` reads, without its point.

    Raises:
        ValueError: it is not an image that is read.
    """
    try:
        with _opened(io.BytesIO(data)) as image:
            suffix = {"JPEG": "jpg", "MPO": "jpg"}.get(str(image.format), str(image.format).lower())
    except Exception as error:  # Pillow's decoders let a damaged file raise anything
        raise ValueError(first_line(error)) from error
    if f".{suffix}" not in SUFFIXES:
        raise ValueError(f"an image of the format {suffix}; {', '.join(SUFFIXES)} are read")
    return suffix
