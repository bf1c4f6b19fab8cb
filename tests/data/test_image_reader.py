"""Images as cameras, scanners and drawing programs write them: upright, 8 bits, on white, the first frame; or refused by name."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from unlearnbench.config.errors import UserError
from unlearnbench.data.image_reader import image_files, image_suffix, open_image, reading_key
from unlearnbench.data.training_source import read_captioned
from unlearnbench.storage.cache import digest

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """An empty folder."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
def remarks(caplog):
    """The warnings so far, without the folder's name."""
    return lambda: [record.getMessage().partition(": ")[2] for record in caplog.records]


def bomb(path):
    """A small PNG that says it has 400 million pixels."""
    data = io.BytesIO()
    Image.new("1", (8, 8)).save(data, "png")
    head = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + data.getvalue()[24:29]
    path.write_bytes(data.getvalue()[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data.getvalue()[33:])


def large_text(path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a" * 2**21, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_an_image_is_turned_upright_by_its_exif_orientation(orientation, suffix, folder):
    turned = {
        1: NOISE, 2: NOISE[:, ::-1], 3: NOISE[::-1, ::-1], 4: NOISE[::-1], 5: NOISE.swapaxes(0, 1), 6: np.rot90(NOISE, 1),
        7: np.rot90(NOISE, 2).swapaxes(0, 1), 8: np.rot90(NOISE, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(folder / f"a.{suffix}", exif=exif, lossless=True)
    assert np.array_equal(open_image(folder / f"a.{suffix}"), NOISE)
    key, plain = reading_key([folder / f"a.{suffix}"])[0], orientation == 1
    assert len(key) == (3 if plain else 4), "features of a turned image that were cached before are not used"


def test_sixteen_bits_of_gray_are_scaled_to_eight(folder):
    gray = NOISE[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "a.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "b.tif")
    for name in ("a.png", "b.tif"):
        assert np.array_equal(open_image(folder / name), np.repeat(gray[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_flattened_on_white_and_named(mode, folder, remarks):
    pixels = np.dstack([NOISE, np.full((6, 8), 255, np.uint8)])
    pixels[0] = 10, 20, 30, 0
    image = Image.fromarray(pixels)
    expected = NOISE.copy() if mode == "RGBA" else np.array(image.convert(mode).convert("RGB"))
    image.convert(mode).save(folder / "a.png", **({"transparency": 0} if mode == "P" else {}))
    expected[0] = 255
    (folder / "a.txt").write_text("noise")
    if mode == "P":
        with Image.open(folder / "a.png") as saved:
            expected = np.where((np.array(saved) == 0)[..., None], 255, np.array(saved.convert("RGB")))
    assert np.array_equal(open_image(folder / "a.png"), expected)
    for _ in range(2):
        read_captioned(str(folder))
    assert remarks() == ["1 transparent; flattened on white: a.png"]


def test_opaque_and_palette_images_are_read_as_ever(folder):
    Image.fromarray(np.dstack([NOISE, np.full((6, 8), 255, np.uint8)])).save(folder / "opaque.png")
    Image.fromarray(NOISE).quantize(255).save(folder / "palette.png")
    Image.fromarray(NOISE).convert("CMYK").save(folder / "cmyk.tif")
    assert np.array_equal(open_image(folder / "opaque.png"), NOISE)
    for name in ("palette.png", "cmyk.tif"):
        with Image.open(folder / name) as image:
            assert np.array_equal(open_image(folder / name), np.array(image.convert("RGB")))
    stat = (folder / "palette.png").stat()
    before = digest([(str(folder / "palette.png"), stat.st_size, stat.st_mtime_ns)])
    assert digest(reading_key([folder / "palette.png"])) == before


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animated_image_the_first_frame_is_read_and_that_is_said(name, folder, remarks):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    assert [path.name for path in image_files(folder)] == [name]
    assert open_image(folder / name).tolist() == np.full((8, 8, 3), (255, 0, 0)).tolist()
    assert remarks() == [f"1 animated or of several pages; only the first is read: {name}"]


def test_every_common_format_is_read_and_what_is_left_out_is_named(folder, remarks):
    names = ["a.BMP", "b.gif", "c.jpeg", "d.JPG", "e.png", "f.tif", "g.TIFF", "h.webp"]
    for name in names:
        Image.fromarray(NOISE).save(folder / name)
    for name in ("notes.md", "captions.csv", ".hidden", "x.heic", "y.svg"):
        (folder / name).write_text("")
    (folder / "more").mkdir()
    assert [path.name for path in image_files(folder)] == names
    assert remarks() == ["3 left out, for they are no images that are read: more/, x.heic, y.svg"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (bomb, f"above Pillow's limit of {2 * Image.MAX_IMAGE_PIXELS} pixels; make it smaller"),
        (large_text, "a text chunk above Pillow's limit; save it without metadata"),
        (lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path, "tiff"), "32 bits a pixel; save it with 8 or 16"),
        (lambda path: path.write_bytes(b"x"), None),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(spoil, reason, folder):
    Image.fromarray(NOISE).save(folder / "a.png")
    spoil(folder / "b.png")
    with pytest.raises(UserError) as refusal:
        image_files(folder)
    named = "b.png" + (f" ({reason})" if reason else "")
    assert str(refusal.value) == f"{folder}: 1 of 2 images cannot be read; repair or remove {named}"
    with pytest.raises(UserError) as refusal:
        open_image(folder / "b.png")
    assert str(refusal.value).startswith(f"{folder}/b.png: not a readable image ({reason or ''}")
    assert "\n" not in str(refusal.value)


def test_images_of_a_set_get_a_suffix_that_is_read():
    data = io.BytesIO()
    Image.fromarray(NOISE).save(data, "tiff")
    assert image_suffix(data.getvalue()) == "tiff"
    data = io.BytesIO()
    Image.fromarray(NOISE).save(data, "ppm")
    with pytest.raises(ValueError, match="an image of the format ppm; "):
        image_suffix(data.getvalue())
