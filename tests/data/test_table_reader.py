"""Tables of the user in every format: the same rows, and a clear line for what is not understood."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image
from pyarrow import Table, parquet

from unlearnbench.config.errors import UserError
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import Prompt, read_prompts
from unlearnbench.data.training_source import read_captioned
from unlearnbench.metrics.geneval import GenEval

ROWS = [{"prompt": "a réd church, left", "split": "forget", "seed": 7}, {"prompt": "a tree", "split": "far", "seed": None}]
PROMPTS = [Prompt("a réd church, left", "forget", seed=7), Prompt("a tree", "far")]
FIELD = ",case_number,prompt,evaluation_seed,class\n0,0,Image of church,1949,church\n1,1,Image of church,4854,church\n"


@pytest.fixture
def remarks(caplog):
    """The warnings so far, without the file's name."""
    return lambda: [record.getMessage().partition(": ")[2] for record in caplog.records]


def write(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'prompt,split,seed\n"a réd church, left",forget,7\na tree,far,\n'),
        ("a.CSV", '\ufeff Prompt , SPLIT,Seed\r\n"a réd church, left", forget, 7\r\na tree, far,\r\n'),
        ("a.csv", 'prompt, split, seed\n "a réd church, left", forget, 7.0\n a tree , far\n'),
        ("a.csv", normalize("NFD", 'prompt,split,seed\n"a réd church, left",forget,7\na tree,far,\n')),
        ("a.tsv", "prompt\tsplit\tseed\na réd church, left\tforget\t7\na tree\tfar\t\n"),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.JSONL", "".join(json.dumps({k.upper(): v for k, v in row.items()}, ensure_ascii=False) + "\n" for row in ROWS)),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.json", json.dumps({"prompts": ROWS})),
        ("a.json", json.dumps({"prompt": [r["prompt"] for r in ROWS], "split": ["forget", "far"], "seed": [7.0, float("nan")]})),
    ],
)
def test_every_format_gives_the_same_prompts(name, content):
    assert read_prompts(write(name, content)) == PROMPTS


def test_parquet_gives_the_same_prompts(tmp_path, monkeypatch):
    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "a.PARQUET")
    assert read_prompts("a.PARQUET") == PROMPTS
    parquet.write_table(Table.from_pylist(ROWS[:-1]), tmp_path / "a.PARQUET")
    monkeypatch.setattr("unlearnbench.data.table_reader.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"a.PARQUET: reading parquet needs pyarrow; pip install 'unlearnbench\[datasets\]'"):
        read_prompts("a.PARQUET")


def test_a_json_list_of_texts_and_a_text_file_hold_prompts():
    expected = [Prompt("a réd church", "far"), Prompt("a tree", "far")]
    assert read_prompts(write("a.json", '["a re\\u0301d church", " a tree"]'), "far") == expected
    assert read_prompts(write("a.TXT", normalize("NFD", "a réd church\n a tree \n")), "far") == expected


def test_the_seeds_of_the_field_are_read_and_other_columns_named_once(remarks):
    expected = [Prompt("Image of church", seed=1949), Prompt("Image of church", seed=4854)]
    assert read_prompts(write("field.csv", FIELD)) == read_prompts("field.csv") == expected
    assert remarks() == ["'class' is not read; columns that are: prompt, split, use, label, seed"]
    assert read_prompts(write("sd.csv", "prompt,sd_seed,hard,lang\na,5,1,en\n")) == [Prompt("a", seed=5)]
    assert read_prompts(write("own.csv", "prompt,concept,length,style,object\na,church,short,Crayon,Dogs\n")) == [Prompt("a")]
    assert len(remarks()) == 1
    both = "prompt,sd_seed,evaluation_seed,class,note\na,5,6,x,y\n"
    assert read_prompts(write("both.csv", both)) == [Prompt("a", seed=6)]
    assert remarks()[1].startswith("'sd_seed', 'class', 'note' are not read; ")


def test_empty_rows_are_counted(remarks):
    assert len(read_prompts(write("a.csv", "prompt,use\na tree,train\n,\n\n , \na star,train\n\n"))) == 2
    assert len(read_prompts(write("a.jsonl", '{"prompt": "a"}\n\n{}\n{"prompt": null}\n'))) == 1
    assert len(read_prompts(write("a.txt", "a tree\n\na star\n\n"))) == 2
    assert remarks() == ["3 empty rows are left out", "2 empty rows are left out", "1 empty row is left out"]


KNOWN = "known: prompt, split, use, label, seed; rename or remove it"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            'prompt,split,use\na red church,forget,train\n"a small church,forget,measure\na large church,forget,measure\n',
            "a.csv, line 3: a quote is opened and never closed; close it, or double a quote that belongs to the text",
        ),
        (
            "a.csv",
            'prompt,use\n"a small church,train\n"a large church",train\n',
            "a.csv, line 2: text after a closing quote; close each quoted text, and double a quote that belongs to it",
        ),
        (
            "a.csv",
            'prompt,use\n"' + "a church,train\n" * 10_000,
            "a.csv, line 2: a quote is opened and never closed; close it, or double a quote that belongs to the text",
        ),
        ("a.csv", "prompt,spilt\na,near\n", f"a.csv, line 1: column 'spilt'; did you mean 'split'? {KNOWN}"),
        ("a.csv", "prompt,splits\na,near\n", f"a.csv, line 1: column 'splits'; did you mean 'split'? {KNOWN}"),
        ("a.csv", "prompt,sead\na,1\n", f"a.csv, line 1: column 'sead'; did you mean 'seed'? {KNOWN}"),
        (
            "a.csv",
            "prompt,evaluation seed\na,1\n",
            f"a.csv, line 1: column 'evaluation seed'; did you mean 'evaluation_seed'? {KNOWN}",
        ),
        (
            "a.csv",
            "prompt,gen_seed\na,1\n",
            "a.csv, line 1: column 'gen_seed' looks like a seed and is not read; rename it to seed, or remove it",
        ),
        ("a.csv", "prompt,Prompt\na,b\n", "a.csv, line 1: column 'prompt' stands twice; remove one"),
        (
            "a.csv",
            "prompts,use\na,train\n",
            "a.csv, line 1: no column 'prompt'; did you mean 'prompts'? the columns are prompts, use",
        ),
        (
            "a.csv",
            "prompt;use\na;train\n",
            "a.csv, line 1: no column 'prompt'; the columns are separated by ';', separate them by commas",
        ),
        ("a.csv", "prompt\na\0b\n", "a.csv, line 2: a NUL character; the file is damaged"),
        ("a.csv", "prompt\na".encode("utf-16"), "a.csv, line 1: UTF-16; convert it with `iconv -f utf-16 -t utf-8`"),
        ("a.csv", "prompt,seed\na,5.5\n", "a.csv, line 2: seed '5.5' is not a whole number"),
        ("a.txt", "prompt,use\na,train\n", "a.txt, line 1: the header of a table; rename the file to .csv or .tsv"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "a.jsonl, line 2: no JSON (Expecting value)"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "a.jsonl, line 2: no text 'prompt'"),
        ("a.jsonl", '{"prompt": "a", "sead": 1}\n', f"a.jsonl: column 'sead'; did you mean 'seed'? {KNOWN}"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "a.jsonl, line 1: prompt holds half a surrogate pair, which is no character"),
        ("a.jsonl", '{"prompt": "a", "seed": true}\n', "a.jsonl, line 1: seed 'True' is not a whole number"),
        ("a.json", '[{"prompt": "a"},\n{]', "a.json, line 2: no JSON (Expecting property name enclosed in double quotes)"),
        ("a.json", "[1]", 'a.json: a list of objects is read, such as [{"prompt": "..."}]'),
        ("a.json", '{"prompt": ["a", "b"], "seed": [1]}', "a.json: columns of different lengths"),
        ("a.json", "[]", "a.json: no prompt in it"),
        ("a.xlsx", "x", "a.xlsx: .xlsx is not read as a list; save it as .csv, .tsv, .jsonl, .json, .parquet or .txt"),
        ("a.YML", "- x", "a.YML: a list; it must hold entries, name: value"),
    ],
)
def test_a_table_that_is_not_understood_is_refused_in_one_line(name, content, expected):
    with pytest.raises(UserError) as refusal:
        load_prompts(write(name, content))
    assert str(refusal.value) == expected


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt": "a", "seed": ' + "9" * 5000 + "}"])
def test_a_json_that_python_cannot_hold_is_refused(line):
    with pytest.raises(UserError, match=r"a.jsonl, line 1: no JSON that can be read"):
        read_prompts(write("a.jsonl", line))


# --- captions -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder of two images without captions."""
    (tmp_path / "mine").mkdir()
    for name in ("a.png", "é.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "mine" / name)
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Captions.CSV", "File, Caption\na.png, a church\n./é.png, a chapel\n"),
        ("captions.tsv", normalize("NFD", "file\tcaption\na.png\ta church\né.png\ta chapel\n")),
        ("metadata.csv", "file_name,text\na.png,a church\né.png,a chapel\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a church"}\n{"file_name": "é.png", "text": "a chapel"}\n'),
    ],
)
def test_captions_may_be_a_table_of_any_format(name, content, folder):
    (folder / name).write_text(content)
    captions, files = read_captioned(str(folder))
    assert captions == ["a church", "a chapel"]
    assert [file.name for file in files] == ["a.png", "é.png"]


def test_a_caption_beside_an_image_may_have_any_case_and_goes_before_metadata(folder):
    (folder / "a.TXT").write_text("a church")
    (folder / "metadata.csv").write_text("file_name,text\na.png,other\né.png,a chapel\n")
    assert read_captioned(str(folder))[0] == ["a church", "a chapel"]


def test_empty_captions_are_refused_and_counted(folder):
    (folder / "a.txt").write_text(" \n")
    (folder / "é.txt").write_text("a church")
    with pytest.raises(UserError, match=r"mine: 1 of 2 images have an empty caption; write it, or remove a\.png$"):
        read_captioned(str(folder))
    (folder / "captions.csv").write_text("file,caption\na.png,\né.png,\n")
    with pytest.raises(UserError, match=r"mine: 2 of 2 images have an empty caption; write it, or remove a\.png, é\.png$"):
        read_captioned(str(folder))


def test_rows_of_no_image_and_second_captions_are_not_left_out_in_silence(folder, remarks):
    table = "file,caption\na.png,a church\né.png,a chapel\nb.png,a house\n"
    (folder / "captions.csv").write_text(table)
    assert len(read_captioned(str(folder))[0]) == 2
    assert remarks() == ["1 of its files are no images of the folder: b.png"]
    (folder / "captions.csv").write_text(table + "a.png,another\n")
    with pytest.raises(UserError, match=r"captions.csv, line 5: another caption of a\.png; keep one"):
        read_captioned(str(folder))


@pytest.mark.parametrize(
    ("include", "problem"),
    [
        ("5", "include is not a list of clauses"),
        ("[5]", "include is not a list of clauses"),
        ('[{"class": "a", "count": 1}, {"class": "a", "count": 1, "position": "x"}]', "clause 2 has no position such as"),
    ],
)
def test_malformed_specs_are_refused(include, problem):
    write("specs.jsonl", f'{{"prompt": "a", "tag": "b", "include": {include}}}\n')
    with pytest.raises(UserError, match=f"specs.jsonl, line 1: {problem}"):
        GenEval(specs="specs.jsonl")._read_specs()


def test_other_columns_of_a_parquet_file_stay_unless_they_hold_images_or_lists(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {"prompt": "a cat", "evaluation_seed": 7, "case_number": 3, "image": {"bytes": b"x"}, "tags": ["a"], "raw": b"y"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    [prompt] = read_prompts(str(tmp_path / "rows.parquet"))
    assert (prompt.text, prompt.seed, dict(prompt.columns)) == ("a cat", 7, {"case_number": "3"})
