"""Prompt lists, the user's and ours; the exchange of words; folders of images."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from unlearnbench import pictoworld
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.data.concept import Concept
from unlearnbench.data.image_reader import open_image
from unlearnbench.data.images import Images
from unlearnbench.data.phrases import mentions
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt, read_prompts
from unlearnbench.data.retain_set import Retain
from unlearnbench.data.training_source import read_captioned
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.pictoworld.captions import parse

MODELS = {"pictoworld": "pictoworld", "photo": "sd14"}
TUNING = ("dotted", "fish")  # of Pictoworld alone, and without synonyms
ANCHORS = {  # not of a list, or measured on a set of the hub: tests/data/test_prompt_sets.py
    c: settings.anchors
    for c in choices("concept")
    if "anchors" in (settings := OmegaConf.load(CONF / f"concept/{c}.yaml")) and not settings.measured
}
DOMAINS = [(c, domain) for c, anchors in ANCHORS.items() for domain in MODELS if domain in anchors]
CONCEPTS = [c for c, anchors in ANCHORS.items() if "pictoworld" in anchors]  # those of Pictoscenes: tests/pictoscenes
LISTS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.csv"))


def spec_of(concept, domain):
    return RunSpec.of(compose(f"concept={concept}", f"model={MODELS[domain]}", "retain=standard"))


def texts(prompts, split, *uses):
    return {p.text for p in prompts if p.split == split and p.use in (uses or ("train", "measure", ""))}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_holds_no_prompt_twice_and_never_trains_on_what_it_measures(name):
    prompts = read_prompts(name)
    rows = [(p.text.lower(), p.seed) for p in prompts]
    assert len(set(rows)) == len(rows)
    assert {p.use for p in prompts} <= {"train", "measure"}
    assert {p.split for p in prompts} <= ({"forget", "paraphrase", *RETAIN_SPLITS} if "lists/" not in name else {""})


@pytest.mark.parametrize(("concept", "domain"), DOMAINS)
def test_a_concept_has_prompts_to_train_and_to_measure_in_every_domain(concept, domain):
    spec = spec_of(concept, domain)
    asked, kept = spec.concept.load(), spec.retain.load(spec.concept)
    for use in ("train", "measure"):
        assert len(texts(asked, "forget", use)) >= 8
        for split in RETAIN_SPLITS:
            assert len(texts(kept, split, use)) >= 4, (split, use)
    if domain == "pictoworld" and concept not in TUNING:
        assert len(texts(asked, "paraphrase", "measure")) >= 8
    assert not texts(asked, "paraphrase", "train")


@pytest.mark.parametrize(("concept", "domain"), DOMAINS)
def test_training_and_measured_prompts_of_a_concept_and_its_retain_set_never_meet(concept, domain):
    spec = spec_of(concept, domain)
    everything = [*spec.concept.load(), *spec.retain.load(spec.concept)]
    trained = {p.text.lower() for p in everything if p.use in ("", "train")}
    measured = {p.text.lower() for p in everything if p.use in ("", "measure")}
    assert not trained & measured


@pytest.mark.parametrize(("concept", "domain"), DOMAINS)
def test_forget_prompts_name_the_concept_and_retain_prompts_do_not(concept, domain):
    spec = spec_of(concept, domain)
    asked = spec.concept.load()
    assert all(spec.concept.is_named_in(text) for text in texts(asked, "forget"))
    assert not [text for text in texts(asked, "near") if spec.concept.is_named_in(text)]
    assert not [p.text for p in spec.retain.load(spec.concept) if spec.concept.is_named_in(p.text)]


@pytest.mark.parametrize(("concept", "domain"), DOMAINS)
def test_the_anchor_of_a_forget_prompt_does_not_name_the_concept(concept, domain):
    chosen = spec_of(concept, domain).concept
    for text in texts(chosen.load(), "forget"):
        anchor = chosen.substitute(text)
        assert len(anchor.split()) >= 2
        assert not chosen.is_named_in(anchor), (text, anchor)
        assert anchor == " ".join(anchor.split()).strip(" ,")


@pytest.mark.parametrize("concept", CONCEPTS)
def test_on_pictoworld_the_anchor_changes_the_concept_and_keeps_every_other_attribute(concept):
    chosen = spec_of(concept, "pictoworld").concept
    judged = chosen.detector["pictoworld"]
    for prompt in chosen.load():
        if prompt.split == "forget":
            asked, anchored = parse(prompt.text), parse(chosen.substitute(prompt.text))
            assert asked.pop(judged["attribute"]) == judged["value"]
            assert anchored.pop(judged["attribute"], None) != judged["value"]
            assert asked.items() <= anchored.items()
            assert anchored.keys() - asked.keys() <= ({"color"} if concept == "nudity" else set())


@pytest.mark.parametrize("domain", MODELS)
def test_descriptions_of_a_concept_are_ten_short_and_ten_long_and_never_name_it(domain):
    name = f"lists/implicit-{domain}.csv"
    rows = read_prompts(name)
    for concept in dict.fromkeys(dict(p.columns)["concept"] for p in rows):
        if concept in CONCEPTS:
            described = replace(spec_of(concept, domain).concept, implicit=[name])
        else:
            described = Concept(concept, [concept.replace("_", " ")], "lists/object.csv", {}, concept, {}, implicit=[name])
        measured = [p for p in described.load() if p.split == "implicit"]
        assert Counter(dict(p.columns)["length"] for p in measured) == {"short": 10, "long": 10}
        assert all(p.use == "measure" and not mentions(p.text, described.name_phrases()) for p in measured)
        lengths = {n: np.mean([len(p.text) for p in measured if dict(p.columns)["length"] == n]) for n in ("short", "long")}
        assert lengths["long"] > 1.8 * lengths["short"]
    assert {concept for concept in CONCEPTS if concept not in TUNING} <= {dict(p.columns)["concept"] for p in rows}


def test_descriptions_of_pictoworld_have_only_words_that_it_knows():
    known = json.loads((Path(pictoworld.__file__).parent / "byte_pairs.json").read_text())["vocab"]
    words = {word for p in read_prompts("lists/implicit-pictoworld.csv") for word in p.text.split()}
    assert not [word for word in words if f"{word}</w>" not in known]
    assert RunSpec.of(compose("experiment=implicit")).concept.implicit == ["lists/implicit-pictoworld.csv"]


def test_a_description_that_names_the_concept_is_refused_and_a_list_without_the_concept_too(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,concept\na tall thing,church\na chapel,church\na canopy,parachute\n")
    (tmp_path / "plain.txt").write_text("a tall thing\n")
    concept = Concept("church", ["church", "chapel"], "plain.txt", {}, "church", {}, implicit=["mine.csv"])
    with pytest.raises(UserError, match=r"mine\.csv: 'a chapel' names church; list it in concept\.paraphrases, or reword it"):
        concept.load()
    concept = replace(concept, name="parachute", words=["parachute"], implicit=["mine.csv", "plain.txt"])
    assert [p.text for p in concept.load() if p.split == "implicit" and p.use == "measure"] == ["a canopy", "a tall thing"]
    with pytest.raises(UserError, match=r"mine\.csv has no description of fish"):
        replace(concept, name="fish").load()


@pytest.mark.parametrize(
    ("anchor", "prompt", "exchanged"),
    [
        ({"church": "house"}, "a Church by churchyards", "a house by churchyards"),
        ({"van gogh": "monet", "by van gogh": ""}, "a tree by van gogh", "a tree"),
        ({"nude": "dressed", "naked": "dressed"}, "a nude or naked person", "a dressed or dressed person"),
        ({"church (old)": "barn"}, "church (old), red", "barn, red"),
        ({"by van gogh": ""}, "a wheat field, by van gogh", "a wheat field"),
        ({"church": r"\1 house"}, "a church", r"a \1 house"),
        ({}, "a  tree ", "a tree"),
    ],
)
def test_substitute_replaces_whole_words_longest_first(anchor, prompt, exchanged):
    assert Concept("c", [], "", anchor, "", {}).substitute(prompt) == exchanged


def test_a_text_file_holds_a_forget_prompt_a_line(tmp_path):
    (tmp_path / "mine.txt").write_bytes("\ufeffa réd church\r\n\n  a church  \n".encode())
    concept = Concept("church", ["church"], "mine.txt", {}, "church", {})
    assert concept.load() == [Prompt("a réd church", "forget"), Prompt("a church", "forget")]


def test_a_csv_may_name_split_use_label_and_seed(tmp_path):
    (tmp_path / "mine.csv").write_text('prompt,seed,split,use,label\n"a tree, red",7,near,measure,a tree\na church,,,,\n')
    assert read_prompts("mine.csv", "forget") == [
        Prompt("a tree, red", "near", "measure", "a tree", 7),
        Prompt("a church", "forget"),
    ]


def test_null_in_a_jsonl_is_an_empty_cell(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a tree", "split": null, "use": null, "label": null, "seed": null}\n')
    assert read_prompts("mine.jsonl", "far") == [Prompt("a tree", "far")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("mine.csv", b"text,split\na,b\n", "mine.csv, line 1: no column 'prompt'; the columns are text, split"),
        ("mine.csv", b"", "mine.csv, line 1: no column 'prompt'; the columns are none"),
        ("mine.csv", b"prompt\n", "mine.csv: no prompt in it"),
        ("mine.csv", b"prompt,split\na tree,near\n ,near\n", "mine.csv, line 3: the prompt is empty"),
        (
            "mine.csv",
            b"prompt,split\na tree,nera\n",
            "mine.csv, line 2: split 'nera'; did you mean 'near'? known: far, forget, generic, implicit, near, paraphrase",
        ),
        (
            "mine.csv",
            b"prompt,use\na tree,training\n",
            "mine.csv, line 2: use 'training'; did you mean 'train'? known: measure, train",
        ),
        ("mine.csv", b"prompt,seed\na tree,x1\n", "mine.csv, line 2: seed 'x1' is not a whole number"),
        ("mine.csv", "prompt,seed\na tree,²\n".encode(), "mine.csv, line 2: seed '²' is not a whole number"),
        ("mine.csv", f"prompt,seed\na tree,{2**63}\n".encode(), f"mine.csv, line 2: seed {2**63} is above {2**63 - 1}"),
        ("mine.csv", b"prompt,seed\na tree," + b"9" * 5000, f"mine.csv, line 2: seed {'9' * 5000} is above {2**63 - 1}"),
        (
            "mine.jsonl",
            b'{"prompt": "a tree", "split": 5}',
            "mine.jsonl, line 1: split '5'; known: far, forget, generic, implicit, near, paraphrase",
        ),
        (
            "mine.csv",
            b"prompt,use\na tree,,\na star, red,train\n",
            "mine.csv, line 3: more cells than columns; quote a text with commas",
        ),
        ("mine.csv", b"prompt\na\nb\nr\xe9d\n", "mine.csv, line 4: not UTF-8; convert it with `iconv -t utf-8`"),
        ("mine.txt", b"a tree\nr\xe9d\n", "mine.txt, line 2: not UTF-8; convert it with `iconv -t utf-8`"),
        ("mine.txt", b" \n", "mine.txt: no prompt in it"),
        ("gone.txt", None, f"gone.txt: no such file, neither here nor in {CONF}"),
    ],
)
def test_a_faulty_list_is_reported_with_its_line(name, content, expected, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_prompts(name)
    assert str(refusal.value) == expected


def test_retain_prompts_are_of_the_chosen_splits_and_do_not_name_the_concept(tmp_path):
    (tmp_path / "concept.csv").write_text("prompt,split\na church,forget\na house,near\n")
    (tmp_path / "retain.csv").write_text("prompt,split\na tree,\nan old church,far\nsomething,generic\n")
    church = Concept("church", ["church"], "concept.csv", {}, "church", {})
    kept = Retain("retain.csv", ["near", "far"]).load(church)
    assert [(p.text, p.split) for p in kept] == [("a house", "near"), ("a tree", "far")]
    (tmp_path / "retain.csv").write_text("prompt\na church\n")
    with pytest.raises(UserError, match=r"retain.prompts=retain.csv: no prompt of far remains without church"):
        Retain("retain.csv", ["far"]).load(church)


@pytest.fixture
def folder(tmp_path):
    """A training folder of three pictures, without captions yet."""
    result = tmp_path / "mine"
    result.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c.PNG")):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(result / name)
    (result / "notes.md").write_text("no image")
    return result


def test_captions_lie_beside_images_or_in_one_csv(folder):
    (folder / "a.txt").write_text(" a church \n")
    with (folder / "captions.csv").open("w") as file:
        csv.writer(file).writerows([("file", "caption"), ("b.jpg", "a church, blue"), ("c.PNG", "a chapel")])
    captions, files = read_captioned(str(folder))
    assert captions == ["a church", "a church, blue", "a chapel"]
    assert [file.name for file in files] == ["a.png", "b.jpg", "c.PNG"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"a church", "mine/b.jpg: no caption; write it to b.txt or to captions.csv"),
        ("a.txt", b"r\xe9d", "mine/a.txt, line 1: not UTF-8; convert it with"),
        (
            "captions.csv",
            b"name,text\na.png,a church\n",
            "mine/captions.csv, line 1: no column 'file'; the columns are name, text",
        ),
        ("captions.csv", b"file,caption\na.png,r\xe9d\n", "mine/captions.csv, line 2: not UTF-8; convert it with"),
    ],
)
def test_faulty_captions_are_reported(name, content, expected, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_captioned("mine")
    assert str(refusal.value).startswith(expected)


def test_an_image_is_cut_to_its_centre_square_and_resized(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert open_image(tmp_path / "wide.png").shape == (10, 30, 3)
    assert (open_image(tmp_path / "wide.png", 5) == 200).all()
    Image.new("L", (4, 4), 7).save(tmp_path / "gray.png")
    assert open_image(tmp_path / "gray.png").tolist() == np.full((4, 4, 3), 7).tolist()


def test_a_file_that_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "x.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"x.png: not a readable image"):
        open_image(tmp_path / "x.png")


def test_an_image_folder_is_read_back_as_it_was_written(write_images):
    pixels = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    written = write_images("shots", pixels, split=["far", "near", "far"])
    read = Images(written.folder)
    assert list(read) == list(written)
    assert torch.equal(read.pixels(), pixels)
    assert [record.file for record in read.where("far")] == ["00000.png", "00002.png"]
    assert torch.equal(read.where("near").pixels(), pixels[1:2])
    assert read.key() == written.key() != read.where("far").key()


def test_an_index_that_ends_in_half_a_line_is_read_up_to_there(write_images):
    folder = write_images("shots", np.zeros((3, 4, 4, 3), np.uint8)).folder
    index = folder / "index.jsonl"
    index.write_text(index.read_text()[:-20])
    assert [record.file for record in Images(folder)] == ["00000.png", "00001.png"]


def test_a_changed_or_lost_image_is_not_intact(write_images):
    images = write_images("shots", np.zeros((3, 4, 4, 3), np.uint8))
    (images.folder / "00001.png").write_bytes(b"other")
    (images.folder / "00002.png").unlink()
    assert [images.intact(record) for record in images] == [True, False, False]


def test_pixels_of_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no image in it"):
        Images(tmp_path).pixels()


def test_a_line_of_an_index_that_is_no_record_is_named(tmp_path):
    good = '{"file": "0.png", "prompt": "a", "split": "far", "label": "", "seed": 1, "sha256": ""}'
    (tmp_path / "index.jsonl").write_text(good + '\n{"file": "1.png", "pro')  # as a killed process leaves it
    assert [record.file for record in Images(tmp_path)] == ["0.png"]
    for line in ("null", "[1]", '{"file": "1.png"}', good.replace('"seed"', '"sed"')):
        (tmp_path / "index.jsonl").write_text(f"{good}\n{line}\n")
        with pytest.raises(UserError, match=r"index.jsonl, line 2: no record of an image; remove the line, or repeat the run"):
            Images(tmp_path)
