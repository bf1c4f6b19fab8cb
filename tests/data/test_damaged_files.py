"""Some hundred damaged tables, images and yaml files: read with right counts or refused in one line, never a traceback."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from pyarrow import Table, parquet

from unlearnbench.config.build import build
from unlearnbench.config.errors import UserError
from unlearnbench.data import remarks
from unlearnbench.data.concept import Concept
from unlearnbench.data.image_reader import image_files, open_image
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import read_prompts
from unlearnbench.data.training_source import read_captioned

TABLE = """prompt,split,use,label,seed
a red church on a hill,forget,train,a church,1
"a small church, on the left",forget,measure,a church,2
"a ""large"" church
in the snow",forget,measure,a church,3
a réd house,near,train,,
a house,near,measure,a house,4
a boat,far,train,a boat,9223372036854775807
a tree,far,measure,,6
"""
ROWS = [{"prompt": f"a church {i}", "split": "forget", "use": "measure", "seed": i, "label": None} for i in range(6)]
CATALOG = "cat: {phrase: a cat, anchor: a dog, near: [a lion, a dog]}\nowl:\n  phrase: an owl\n  near:\n    - an eagle\n"
SET = "_target_: unlearnbench.data.prompt_sets.PromptSet\npath: rows\nfiles: ['*.csv']\nprompt: prompt\nleast: {seed: 2}\n"
PIECES = [
    b'"', b"'", b",", b"\n", b"\r", b"\t", b";", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"{", b"}", b"[", b"]", b":", b"- ",
    b"&a ", b"*a", b"!!python/object:os.system ", b"${x}", b"???", b"\\ud800", b"\\", b"1e999", b"-1", b"nan", b"null", b"#",
    b" ", b"|", b"?", b"%", b"@", b"<<: ", b"\x1b", b"9" * 30, "\u2028\u0301教".encode(),
]  # fmt: skip


def damaged(data, draw):
    """The bytes after one or two accidents."""
    for _ in range(draw.randint(1, 2)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice([0, 1, 1, 2, 5, 20]))
        piece = draw.choice([b"", draw.choice(PIECES), draw.randbytes(2), data[start:end] * 2, data[start : start + 40]])
        data = data[:start] + piece + data[end:]
        if draw.random() < 0.1:
            data = data[: draw.randrange(len(data) + 1)]
    return data


def refused(read):
    """What was read, or None for a refusal in one line."""
    try:
        return read()
    except UserError as error:
        message = str(error)
    assert message.isprintable(), repr(message)
    return None


@pytest.fixture
def empty_rows(monkeypatch):
    """The count of empty rows in the warnings since the last call."""
    texts = []
    monkeypatch.setattr(remarks.logger, "warning", lambda form, text: texts.append(text))

    def count():
        rows = [int(text.rpartition(": ")[2].split()[0]) for text in texts if "empty row" in text]
        texts.clear()
        return sum(rows)

    return count


def test_damaged_tables_lose_no_row(tmp_path, empty_rows):
    draw, whole = random.Random(0), 0
    for i in range(150):
        path = tmp_path / f"{i}.{draw.choice(['csv', 'CSV', 'tsv'])}"
        base = TABLE.replace(",", "\t").replace("church\t on", "church, on") if path.suffix == ".tsv" else TABLE
        path.write_bytes(damaged(base.encode(), draw))
        prompts = refused(lambda path=path: read_prompts(str(path), "forget"))
        empty = empty_rows()
        if prompts is not None:
            whole += 1
            text = io.StringIO(path.read_bytes().decode("utf-8-sig").rstrip(), newline="")
            records = list(csv.reader(text, delimiter="\t" if path.suffix == ".tsv" else ",", skipinitialspace=True))
            header = next(i for i, record in enumerate(records) if any(record))
            assert len(prompts) + empty == len(records) - header - 1, path.read_bytes()
            assert all(prompt.text for prompt in prompts)
    assert 20 < whole < 130


def test_damaged_json_parquet_and_text_lose_no_row(tmp_path, empty_rows):
    draw = random.Random(1)
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    bases = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(), "json": json.dumps(ROWS, indent=0).encode(),
        "txt": TABLE.partition("\n")[2].encode(), "parquet": (tmp_path / "rows.parquet").read_bytes(),
    }  # fmt: skip
    for i in range(120):
        suffix = draw.choice([*bases])
        path = tmp_path / f"{i}.{suffix}"
        path.write_bytes(damaged(bases[suffix], draw))
        prompts = refused(lambda path=path: read_prompts(str(path), "forget"))
        empty = empty_rows()
        if prompts is not None and suffix in ("jsonl", "txt"):
            text = path.read_text("utf-8-sig").rstrip()
            lines = text.split("\n") if suffix == "jsonl" else text.splitlines()
            assert len(prompts) + empty == len([line for line in lines if suffix == "txt" or line.strip()])
        elif prompts is not None and suffix == "json":
            assert len(prompts) + empty == len(json.loads(path.read_text("utf-8-sig")))


def test_damaged_images_are_read_or_named(tmp_path, monkeypatch):
    draw, whole = random.Random(2), 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    bases = {}
    for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff"):
        data = io.BytesIO()
        image = Image.fromarray(pixels)
        image.save(data, kind, **({"exif": exif} if kind in ("png", "jpeg", "webp", "tiff") else {}))
        bases[kind] = data.getvalue()
    data = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(data, "png")
    bases["gray.png"] = data.getvalue()
    for i in range(180):
        kind = draw.choice([*bases])
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "whole.png").write_bytes(bases["png"])
        path = folder / f"a.{kind}"
        path.write_bytes(damaged(bases[kind], draw))
        (folder / "captions.csv").write_text(f"file,caption\nwhole.png,a church\n{path.name},a house\n")
        captioned = refused(lambda folder=folder: read_captioned(str(folder)))
        assert captioned is None or [file.name for file in captioned[1]] == sorted([path.name, "whole.png"])
        image = refused(lambda path=path: open_image(path, 8))
        assert image is None or (image.shape == (8, 8, 3) and image.dtype == np.uint8)
        with pytest.raises(UserError, match=f"a.{kind}") if captioned is None else monkeypatch.context():
            image_files(folder)
        whole += captioned is not None
    assert 10 < whole < 170


def test_damaged_yaml_files_are_read_or_refused(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    draw, whole = random.Random(3), 0
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/rows.csv").write_text(TABLE)
    (tmp_path / "templates.txt").write_text("a photo of {}\n{} in snow\n")
    node = {
        "_target_": "unlearnbench.data.concept_catalog.CatalogConcept", "name": "cat", "which": "cat", "things": "things.yaml",
        "templates": "templates.txt", "exchange": {"{}": "{anchor}"},
    }  # fmt: skip
    for _ in range(60):
        Path("things.yaml").write_bytes(damaged(CATALOG.encode(), draw))
        prompts = refused(lambda: build(node, Concept, "concept").load())
        assert prompts is None or len(prompts) == 4
        Path("set.yaml").write_bytes(damaged(SET.encode(), draw))
        rows = refused(lambda: load_prompts("set.yaml"))
        whole += (prompts is not None) + (rows is not None)
    assert whole > 4


def test_a_check_of_damaged_files_ends_in_0_or_in_2_with_one_line(command, tmp_path):
    draw = random.Random(4)
    (tmp_path / "mine").mkdir()
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "png")
    for i in range(4):
        Path("a.csv").write_bytes(damaged(TABLE.encode(), draw) if i % 2 == 0 else TABLE.encode())
        (tmp_path / "mine/a.png").write_bytes(damaged(data.getvalue(), draw) if i % 2 == 1 else data.getvalue())
        (tmp_path / "mine/captions.csv").write_bytes(damaged(b"file,caption\na.png,a church\n", draw))
        outcome = command("check", "experiment=smoke", "concept.prompts=a.csv", "training.forget_folder=mine")
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert (outcome.code, len(errors)) in ((0, 0), (2, 1)), outcome
        assert "Traceback" not in outcome.err
