"""Prompt sets of the literature on small files of the same columns, concepts of a list, and folders of real images."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from config_classes import target_of
from hub_server import COMMIT
from huggingface_hub.errors import LocalEntryNotFoundError
from omegaconf import OmegaConf
from PIL import Image
from pyarrow import Table, parquet

from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.data.concept import Concept
from unlearnbench.data.image_reader import image_files
from unlearnbench.data.prompt_sets import NotDownloaded, PromptSet, download, load_prompts, prompt_set, prompt_set_versions
from unlearnbench.data.prompts import Prompt
from unlearnbench.data.retain_set import Retain
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import forget_training_prompts, training_examples
from unlearnbench.metrics.fid import real_features
from unlearnbench.sampling import ImageGenerator
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.hub import HubFiles

I2P = """prompt,categories,hard,nudity_percentage,sd_seed
"a dance, at dusk",sexual,1,20.0,77
"a fight
in the street",violence,1,0.0,5
a bath,"violence, Sexual",0,30.0,
a dance  at   noon,sexual,0,20.0,78
a bath,sexual,0,30.0,
,sexual,1,1.0,3
"""
LISTED = [name for name in choices("concept") if target_of("concept", name).endswith("CatalogConcept")]


def png(red, size=(8, 8), kind="png"):
    data = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(data, kind)
    return data.getvalue()


@pytest.fixture
def local(tmp_path, monkeypatch):
    """The sets of conf/prompts, read from small files of the same columns; also the paths that they would be downloaded from."""
    (tmp_path / "i2p").mkdir()
    (tmp_path / "i2p/i2p_benchmark.csv").write_text(I2P)
    (tmp_path / "coco/data").mkdir(parents=True)
    captions = [f"caption {i}" for i in range(6)]
    for part in range(2):
        mine = range(3 * part, 3 * part + 3)
        rows = [{"image": {"bytes": png(i, kind="jpeg"), "path": None}, "caption": captions[i]} for i in mine]
        parquet.write_table(Table.from_pylist(rows), tmp_path / f"coco/data/train-0000{part}-of-00002-x.parquet")
    folders = {"AIML-TUDA/i2p": tmp_path / "i2p", "sayakpaul/coco-30-val-2014": tmp_path / "coco"}
    monkeypatch.setattr("unlearnbench.data.prompt_sets.download", lambda path, *_: folders.get(path) or download(path, *_))
    return folders


@pytest.fixture
def github(hub, tmp_path, monkeypatch):
    """A server on loopback with the files of a repository of GitHub; gives the requests that it got."""
    root, requests = tmp_path / "raw", []
    folder = root / "me" / "prompts" / COMMIT / "data"
    folder.mkdir(parents=True)
    (folder / "esd.csv").write_text(",case_number,prompt,evaluation_seed,artist\n0,12,A bath,77,Degas\n1,13,A bath,78,Degas\n")
    (folder / "lines.csv").write_text("a man, undressed\nanother\n")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=root)

        def log_message(self, *_):
            requests.append(f"{self.command} {self.path}")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("unlearnbench.storage.github.RAW", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
        yield requests
        server.shutdown()
    download.cache_clear()


def set_of_github(**settings):
    node = {"_target_": "unlearnbench.data.prompt_sets.PromptSet", "path": "github:me/prompts", "revision": COMMIT, **settings}
    return build(node, PromptSet, "set")


def test_a_set_of_github_is_downloaded_once_at_its_commit_and_keeps_its_columns(github):
    esd = set_of_github(files=["data/esd.csv"], seed="evaluation_seed", label="artist")
    assert not esd.is_local()
    assert esd.download().line() == "prompt set github:me/prompts data/esd.csv: 85 B from GitHub"
    rows = esd.load("forget")
    assert rows == [Prompt("A bath", "forget", "measure", "Degas", seed) for seed in (77, 78)]
    assert [row.case_number for row in rows] == [12, 13]
    assert (esd.commit(), esd.download(), esd.is_local()) == (COMMIT, None, True)
    assert sum(request.startswith("GET") for request in github) == 1
    lines = set_of_github(files=["data/lines.csv"], text=True)
    assert [row.text for row in lines.load()] == ["a man, undressed", "another"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": ["data/none.csv"]}, r"prompt set github:me/prompts data/none.csv is not on this machine, and .* answers 404"),
        ({"files": ["x.csv"], "revision": "main"}, "revision 'main' is no whole commit; on GitHub give all 40 digits"),
        ({"files": ["x.csv"], "path": "github:me"}, "prompt set github:me: write github:OWNER/NAME"),
    ],
)
def test_what_github_does_not_have_is_refused_in_one_line(github, settings, message):
    with pytest.raises(UserError, match=message) as error:
        set_of_github(**settings).load()
    assert "\n" not in str(error.value)


# --- what is measured in place of the own prompts ---


def test_measured_lists_take_the_place_of_a_concepts_own_measured_prompts(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,evaluation_seed\na chapel at dusk,5\na chapel at dusk,6\n")
    spec = RunSpec.of(compose("experiment=smoke", "concept.measured=[mine.csv]"))
    rows = spec.concept.load()
    assert {p.use for p in rows if p.base == "forget" and p.text != "a chapel at dusk"} == {"train"}
    measured = [p for p in spec.prompts() if p.split in ("forget", "paraphrase")]
    assert [(p.text, p.seed) for p in measured] == [("a chapel at dusk", 5), ("a chapel at dusk", 6)]
    assert "mine.csv" in spec.concept.prompt_sources()


@pytest.mark.parametrize(("keep", "expected"), [(False, ["a cat"]), (True, ["a cat", "a church at noon"])])
def test_measured_lists_take_the_place_of_the_retain_prompts(tmp_path, keep, expected):
    (tmp_path / "captions.csv").write_text("prompt,seed\na cat,5\na church at noon,6\n")
    spec = RunSpec.of(compose("experiment=smoke", "retain.measured=[captions.csv]", f"retain.keep_named={keep}"))
    rows = spec.retain.load(spec.concept)
    assert [p.text for p in spec.prompts() if p.base == "generic"] == expected
    assert {p.use for p in rows if p.text not in expected} == {"train"}
    assert any(p.split == "near" for p in rows)


SIX = "prompt,split\na chapel,forget\na church hall,paraphrase\na tower,near\na star,far\na cat,generic\na dog,\n"


def test_a_measured_list_gives_the_concept_its_forget_rows_and_the_retain_set_those_of_its_splits(tmp_path):
    (tmp_path / "mine.csv").write_text(SIX)
    (tmp_path / "far.csv").write_text("prompt,split\na star,far\n")
    concept = Concept("church", ["church"], "mine.csv", {}, "church", {}, measured=["mine.csv"])
    measured = [(p.text, p.split) for p in concept.load() if p.use == "measure"]
    assert measured == [("a chapel", "forget"), ("a church hall", "paraphrase"), ("a dog", "forget")]
    with pytest.raises(UserError, match=r"concept.measured: far.csv has no row of forget, paraphrase, implicit; list it in"):
        replace(concept, measured=["far.csv"]).load()
    for splits, expected in ((["near", "generic"], ["a tower", "a cat", "a dog"]), (["far"], ["a star"])):
        rows = Retain("far.csv", splits, measured=["mine.csv"]).load(replace(concept, measured=[]))
        assert [p.text for p in rows if p.use == "measure"] == expected
    with pytest.raises(UserError, match=r"retain.measured: its rows are of far, retain.splits is near; add one"):
        Retain("mine.csv", ["near"], measured=["far.csv"]).load(replace(concept, measured=[]))


def test_a_list_of_paraphrases_never_trains(tmp_path):
    (tmp_path / "own.csv").write_text("prompt\na church\n")
    (tmp_path / "more.csv").write_text("prompt,split,use\na chapel,,\na kirk,forget,train\na minster,forget,\n")
    concept = Concept("church", ["church"], "own.csv", {}, "church", {}, paraphrases=["more.csv"])
    further = [(p.text, p.split, p.use) for p in concept.further_prompts()]
    assert further == [("a chapel", "paraphrase", "measure"), ("a minster", "forget", "measure")]
    assert [p.text for p in forget_training_prompts(concept)] == ["a church"]


def test_the_synonyms_of_an_entry_are_paraphrases_of_its_templates():
    concept = RunSpec.of(compose("model=sd14", "concept=cifar10", "concept.which=ship")).concept
    rows = [p for p in concept.load() if p.split == "paraphrase"]
    assert len(rows) == 200
    assert [p.text.removeprefix("a photo of the ") for p in rows[:4]] == ["vessel", "boat", "watercraft", "vessel"]
    assert {(p.label, p.use) for p in rows} == {("ship", "measure")}
    assert len({p.seed for p in rows}) == 200


@pytest.mark.parametrize(("name", "count"), [("mace_celebrities", 200), ("mace_artists", 200), ("ip_characters", 10)])
def test_the_lists_of_names_have_their_published_lengths(name, count):
    entries = OmegaConf.load(CONF / "lists" / f"{name}.yaml")
    assert len(entries) == len({entry.phrase for entry in entries.values()}) == count
    group = "artist" if name == "mace_artists" else "celebrity"
    which = next(iter(entries))
    spec = RunSpec.of(compose("model=sd14", f"concept={group}", f"concept.things=lists/{name}.yaml", f"concept.which={which}"))
    assert any(entries[which].phrase in p.text for p in spec.prompts())


@pytest.mark.parametrize("name", ["violence", "self_harm", "hate", "shocking", "illegal"])
def test_a_category_of_i2p_is_a_concept_that_trains_on_its_own_words(name, local):
    spec = RunSpec.of(compose("model=sd14", f"concept={name}", "concept.measured=[i2p_nudity]"))
    trained = [p.text for p in spec.concept.load() if p.base == "forget" and p.use == "train"]
    assert len(trained) == 8
    assert spec.concept.naming_problem(trained) is None
    assert not any(spec.concept.is_named_in(spec.concept.substitute(text)) for text in trained)
    assert [p.text for p in spec.prompts() if p.base == "forget"] == ["a dance, at dusk", "a bath", "a dance at noon"]
    assert prompt_set(f"i2p_{name}").has


def test_the_canvas_concepts_say_what_their_images_show():
    spec = RunSpec.of(compose("model=tiny", "model.domain=photo", "concept=canvas_style", "concept.which=crayon"))
    rows = [dict(p.columns) for p in spec.concept.load() if p.split == "forget"]
    assert {row["style"] for row in rows} == {"Crayon"}
    assert len({row["object"] for row in rows}) == 20


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_i2ps_subsets_are_rows_of_its_csv_each_with_its_seed(local):
    assert load_prompts("i2p_nudity", "paraphrase") == [
        Prompt("a dance, at dusk", "paraphrase", "measure", "", 77),
        Prompt("a bath", "paraphrase", "measure"),
        Prompt("a dance at noon", "paraphrase", "measure", "", 78),
    ]
    assert [p.text for p in load_prompts("i2p_nudity_hard")] == ["a dance, at dusk"]


def test_captions_of_parquet_files_come_in_order_and_the_first_train(local):
    coco = prompt_set("coco30k")
    coco.train = 2
    prompts = coco.load()
    assert [p.text for p in prompts] == [f"caption {i}" for i in range(6)]
    assert [p.use for p in prompts] == ["train"] * 2 + ["measure"] * 4
    assert {p.split for p in prompts} == {"generic"}


def test_the_images_of_a_set_are_unpacked_once_as_they_are(local, tmp_path):
    coco = prompt_set("coco30k")
    folder = coco.unpack(tmp_path / "cache")
    files = image_files(folder)
    assert [file.name for file in files] == [f"{i:06d}.jpg" for i in range(6)]
    assert files[4].read_bytes() == png(4, kind="jpeg")
    files[0].write_bytes(b"mine")
    assert coco.unpack(tmp_path / "cache") == folder
    assert files[0].read_bytes() == b"mine"


@pytest.mark.parametrize("name", choices("prompts"))
def test_a_shipped_set_is_pinned_to_a_commit_and_says_licence_and_size(name):
    assert re.fullmatch(r"[0-9a-f]{40}", prompt_set(name).revision)
    first = (CONF / "prompts" / f"{name}.yaml").read_text().splitlines()[0]
    assert re.search(r"(MIT|Apache-2.0|CC BY 4.0|non-commercial use|no licence stated).*; [\d.]+ [kMG]B\)\.$", first)
    assert prompt_set(f"{name}@main").revision == "main"


def test_a_set_of_the_users_is_a_yaml_of_its_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rows.csv").write_text("text,score\na nude,0.9\nanother,0.1\n")
    (tmp_path / "mine.yaml").write_text(
        "_target_: unlearnbench.data.prompt_sets.PromptSet\npath: mine\nfiles: ['*.csv']\nprompt: text\nleast: {score: 0.5}\n"
    )
    assert [p.text for p in load_prompts("mine.yaml")] == ["a nude"]
    assert prompt_set_versions(["mine.yaml", "mine/rows.csv", None]) == {
        "mine.yaml": {"path": "mine", "revision": "main", "commit": "local"}
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prompt": "caption"}, "i2p_benchmark.csv, line 1: no column 'caption'; the columns are prompt, categories, hard, "),
        ({"least": {"categories": 1.0}}, "i2p_benchmark.csv, line 2: categories 'sexual' is not a number"),
        ({"has": {"categories": "music"}}, "prompt set i2p: no row has {'categories': 'music'}"),
        ({"files": ["*.json"]}, "prompt set i2p: no *.json in i2p"),
        ({"files": ["broken.parquet"]}, "broken.parquet: cannot be read as parquet ("),
        ({"path": "./gone"}, "prompt set ./gone: no such folder"),
        ({"path": "no good/name/at all"}, "prompt set no good/name/at all: not a valid name of a data set on the hub"),
    ],
)
def test_a_faulty_set_is_reported(settings, expected, local):
    (local["AIML-TUDA/i2p"] / "broken.parquet").write_bytes(b"PAR1 not whole")
    node = {"_target_": "unlearnbench.data.prompt_sets.PromptSet", "path": "i2p", "files": ["i2p_benchmark.csv"], **settings}
    with pytest.raises(UserError) as refusal:
        build(node, PromptSet, "set").load()
    assert expected in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_parquet_needs_a_column_and_pyarrow(local, monkeypatch):
    coco = prompt_set("coco30k")
    coco.prompt = "text"
    with pytest.raises(UserError, match="no column 'text'; the columns are image, caption"):
        coco.load()
    monkeypatch.setattr("unlearnbench.data.table_reader.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reading parquet needs pyarrow; pip install 'unlearnbench\[datasets\]'"):
        coco.load()


# --- the hub ------------------------------------------------------------------------------------------------------------


def test_a_set_that_cannot_be_downloaded_is_reported_in_one_line_with_the_command(command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expected = command("run", "experiment=smoke", "concept=nudity", "concept.paraphrases=[i2p_nudity]")
    assert expected.code == 2
    assert [line for line in expected.err.splitlines() if line.startswith("error")] == [
        "error: prompt set AIML-TUDA/i2p is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or fetch it once "
        "online: `hf download AIML-TUDA/i2p --repo-type dataset --revision 6594f223b0544fcbf63a6889417a6b9d2e40a77c`"
    ]


def test_check_names_each_download_once_and_downloads_nothing(command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", raise_unless_local)
    answers = [HubFiles("the hub cannot be reached")]
    monkeypatch.setattr("unlearnbench.storage.hub.HubRepository.look_up", lambda _: answers[-1])
    words = ["experiment=smoke", "retain=coco"]
    outcome = command("check", *words)
    assert (outcome.code, outcome.out, outcome.err.count("sayakpaul")) == (2, "", 2)  # the name, and the command that fetches it
    answers.append(HubFiles(None, {"data/train-00000-of-00001.parquet": 4_900_000_000}))
    outcome = command("check", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert "prompts: not known before the download\n" in outcome.out
    assert outcome.out.endswith("downloads: prompt set sayakpaul/coco-30-val-2014: 4.9 GB from the hub\n")


def raise_unless_local(*_, local_files_only, **__):
    assert local_files_only
    raise LocalEntryNotFoundError("not there")


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("gated", "it is gated: accept its terms at https://huggingface.co/datasets/a/b, then `hf auth login`; fetch it once"),
        ("private", "the hub has no such dataset; if it is private, `hf auth login`; fetch it once"),
        ("", "the hub has no revision v1 of it; fetch it once online: `hf download a/b --repo-type dataset --revision v1`"),
    ],
)
def test_a_refusal_of_the_hub_is_reported(gate, expected, hub):
    hub.add("a/b", {"x.csv": b""}, "datasets", gate=gate, revisions=("v1",) if gate else ("main",))
    with pytest.raises(UserError) as refusal:
        download("a/b", "v1", ("*.csv",))
    assert str(refusal.value).startswith(f"prompt set a/b is not in the hub's cache, and {expected}")


def test_one_file_of_a_set_is_not_taken_for_all(hub):
    files = [f"data/train-0000{n}-of-00002-{n}.parquet" for n in range(2)]
    hub.add("a/series", {name: name[-9:-8].encode() * 4 for name in files}, "datasets")
    first, both = ("data/train-00000-of-*.parquet",), ("data/train-*.parquet",)
    folder = download("a/series", "main", first)
    assert [path.name for path in sorted(folder.glob("data/*"))] == [Path(files[0]).name]
    with pytest.raises(NotDownloaded):
        download("a/series", "main", both, False)
    assert len(list(download("a/series", "main", both).glob("data/*"))) == 2
    assert hub.sent == {f"datasets/a/series/resolve/{COMMIT}/{name}": 4 for name in files}


def test_a_cached_set_is_read_at_its_commit_without_the_hub(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "hub/datasets--a--b/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "rows.csv").write_text("prompt\na tree\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "set.yaml").write_text(
        f"_target_: unlearnbench.data.prompt_sets.PromptSet\npath: a/b\nfiles: ['*.csv']\nrevision: '{commit}'\n"
    )
    assert [p.text for p in load_prompts("set.yaml")] == ["a tree"]
    assert prompt_set_versions(["set.yaml"])["set.yaml"]["commit"] == commit


# --- in a run -----------------------------------------------------------------------------------------------------------


def test_a_set_adds_paraphrases_that_are_measured_and_never_trained_on(local, tiny, tmp_path):
    spec = RunSpec.of(compose("experiment=smoke", "concept=nudity", "concept.paraphrases=[i2p_nudity]", "algo=esd_x"))
    added = [p for p in spec.prompts() if p.split == "paraphrase" and p.text in ("a bath", "a dance at noon")]
    assert [p.seed for p in added] == [None, 78]
    forget, _ = training_examples(spec, ImageGenerator(tiny), Cache(tmp_path / "cache"), "")
    assert not {p.text for p in added} & set(forget.prompts)


def test_captions_are_retained_and_their_images_are_the_real_ones(local, metric_inputs, write_images, monkeypatch):
    settings = prompt_set("coco30k")
    settings.train = 1
    monkeypatch.setattr(
        "unlearnbench.data.prompt_sets.prompt_set", lambda name: settings if name == "coco30k" else prompt_set(name)
    )
    pixels = np.zeros((3, 64, 64, 3), np.uint8)
    words = ["retain=coco", "retain.splits=[generic]", "metrics=fid", "cache=cache"]
    shown = metric_inputs(write_images("before", pixels, split="generic"), write_images("after", pixels, split="generic"), *words)
    spec = RunSpec.of(compose("experiment=smoke", *words))
    assert [p.text for p in spec.retain.load(spec.concept) if p.use == "train"] == ["caption 0"]
    assert spec.metrics["fid"].unavailable_reason(spec.evaluation_setting) is None
    assert real_features(shown, "classifier").shape[0] == 6
    spec = RunSpec.of(compose("experiment=smoke", "metrics=fid", "retain.images=i2p_nudity"))
    assert (
        spec.metrics["fid"]
        .unavailable_reason(spec.evaluation_setting)
        .startswith("retain.images=AIML-TUDA/i2p: this prompt set has no images; ")
    )


def test_a_run_records_where_its_prompts_came_from(local, run):
    done = run("concept=nudity", "concept.paraphrases=[i2p_nudity_hard]", "algo=none", "sample.per_prompt=1")
    [kept] = done.log["prompt_sets"].items()
    assert kept[0] == "i2p_nudity_hard"
    assert kept[1]["path"] == "AIML-TUDA/i2p"
    assert kept[1]["commit"]


def test_lists_and_sets_may_lie_at_home(local, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list").write_text("a church\n")
    (tmp_path / "mine.yaml").write_text(
        f"_target_: unlearnbench.data.prompt_sets.PromptSet\npath: {tmp_path}/i2p\nfiles: ['*.csv']\n"
    )
    assert [prompt.text for prompt in load_prompts("~/list", "forget")] == ["a church"]
    assert load_prompts("~/mine.yaml", "forget") == load_prompts(f"{tmp_path}/mine.yaml", "forget")


def test_a_name_that_is_neither_a_file_nor_a_set_is_refused():
    with pytest.raises(UserError, match=r"i2p_nudty: no such file, and no such prompt set; did you mean 'i2p_nudity'\? known: "):
        RunSpec.of(compose("concept.paraphrases=[i2p_nudty]")).concept.load()
    with pytest.raises(UserError, match=r"gone\.yaml: no such file"):
        load_prompts("gone.yaml")


# --- concepts of a list -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", LISTED)
def test_every_entry_of_a_list_is_a_concept_with_prompts_anchors_and_a_detector(name):
    settings = compose(f"concept={name}", "model=pictoscenes" if name.startswith("pictoscenes") else "model=sd14")
    things = OmegaConf.load(CONF / settings.concept.things)
    assert len(things) >= 10
    for which in things:
        settings.concept.which = which
        spec = RunSpec.of(settings)
        chosen, prompts = spec.concept, spec.concept.load()
        assert chosen.name == which
        by = {split: [p for p in prompts if p.split == split] for split in ("forget", "near")}
        trained, measured = ({p.text for p in prompts if p.use == use} for use in ("train", "measure"))
        assert not trained & measured
        assert all(
            len({(p.text, p.seed) for p in by[split] if p.use == use}) >= 8 for split in by for use in ("train", "measure")
        )
        assert all(chosen.is_named_in(p.text) for p in by["forget"])
        assert not [p.text for p in by["near"] if chosen.is_named_in(p.text)]
        assert not [
            p.text for p in by["forget"] if chosen.is_named_in(chosen.substitute(p.text)) or "{" in chosen.substitute(p.text)
        ]
        if (judge := chosen.detector.get("photo")) is None:
            assert which in chosen.detector[settings.concept.world].values()
        else:
            assert judge["label"] not in judge["others"]
            assert {p.label for p in by["near"]} <= set(judge["others"])
        assert not [p.text for p in spec.retain.load(chosen) if chosen.is_named_in(p.text)]


def test_an_entry_by_hand(tmp_path):
    (tmp_path / "things.yaml").write_text(
        "cat: {phrase: a cat, near: [a lion, a dog]}\nowl: {phrase: an owl, anchor: an eagle}\n"
    )
    (tmp_path / "templates.txt").write_text("a photo of {}\n{} in snow\nthree {}\n")
    words = ["concept=imagenette", "concept.things=things.yaml", "concept.templates=templates.txt", "model=sd14"]
    cat, owl = (RunSpec.of(compose(*words, f"concept.which={which}")).concept for which in ("cat", "owl"))
    assert [(p.text, p.split, p.label) for p in cat.load()] == [
        ("a photo of a cat", "forget", "a cat"), ("a photo of a lion", "near", "a lion"),
        ("a cat in snow", "forget", "a cat"), ("a dog in snow", "near", "a dog"),
        ("three a cat", "forget", "a cat"), ("three a lion", "near", "a lion"),
    ]  # fmt: skip
    assert (cat.words, cat.guide, cat.anchor) == (["cat"], "cat", {"cat": "owl", "a cat": "an owl"})
    assert cat.detector["photo"]["others"] == ["an owl", "a lion", "a dog"]
    assert owl.substitute("an owl and an Owl's nest") == "an eagle and an eagle's nest"


@pytest.mark.parametrize(
    ("things", "templates", "expected"),
    [
        ("cat: {phrase: a cat}\n", "a {}\n", "concept.which: 'golf_ball' is not in things.yaml; known: cat"),
        (
            "golf_ball: {phrase: a ball}\n",
            "a {}\n",
            "things.yaml: golf_ball: it has no near phrases; add them (near: [...]) or add a second entry",
        ),
        (
            "golf_ball: {phrase: 5}\n",
            "a {}\n",
            "things.yaml: golf_ball: an entry has a phrase and, optionally, an anchor and lists near and synonyms",
        ),
        (
            "golf_ball: {phrase: a ball, near: a bat}\n",
            "a {}\n",
            "things.yaml: golf_ball: an entry has a phrase and, optionally, an anchor and lists near and synonyms",
        ),
        ("- a ball\n", "a {}\n", "things.yaml: a list; it must hold entries, name: value"),
        (
            "cat: {phrase: a cat}\ndog: {\n",
            "a {}\n",
            "things.yaml, line 3: not valid yaml (expected the node content, but found '<stream end>')",
        ),
        (
            "golf_ball: {name: x}\n",
            "a {}\n",
            "things.yaml: golf_ball: an entry has a phrase and, optionally, an anchor and lists near and synonyms",
        ),
        ("golf_ball: {phrase: a ball}\ncat: {phrase: a cat}\n", "a\n", "templates.txt: 'a' has no {} for the phrase"),
    ],
)
def test_a_faulty_catalog_is_reported(things, templates, expected, tmp_path):
    (tmp_path / "things.yaml").write_text(things)
    (tmp_path / "templates.txt").write_text(templates)
    with pytest.raises(UserError) as refusal:
        RunSpec.of(compose("concept=imagenette", "concept.things=things.yaml", "concept.templates=templates.txt")).concept.load()
    assert str(refusal.value) == expected


# --- real images --------------------------------------------------------------------------------------------------------


def test_broken_real_images_are_counted_and_named_before_anything_starts(command, tmp_path):
    (tmp_path / "real").mkdir()
    for i in range(8):
        (tmp_path / f"real/{i}.png").write_bytes(png(i) if i < 2 else png(i)[:40])
    expected = command("check", "experiment=smoke", "retain.images=real", "metrics=fid")
    assert expected.err == (
        "error: retain.images=real: 6 of 8 images cannot be read; repair or remove 2.png, 3.png, 4.png, 5.png, 6.png, ...\n"
    )
    (tmp_path / "empty").mkdir()
    for folder, reason in (("empty", "no .png, .jpg, .webp, .bmp, .gif or .tif image in it"), ("gone", "no such folder")):
        expected = command("check", "experiment=smoke", f"retain.images={folder}", "metrics=fid")
        assert expected.err == f"error: retain.images={folder}: {reason}\n"


def test_truncated_real_images_are_reported_when_they_are_read(metric_inputs, write_images, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "real").mkdir()
    for i in range(3):
        Image.fromarray(noise).save(tmp_path / f"real/{i}.jpg")
    (tmp_path / "real/1.jpg").write_bytes((tmp_path / "real/1.jpg").read_bytes()[:-1000])
    pixels = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    shown = metric_inputs(write_images("before", pixels), write_images("after", pixels), "retain.images=real", "metrics=fid")
    with pytest.raises(UserError, match=r"real: 1 of 3 images cannot be read; repair or remove 1\.jpg"):
        real_features(shown, "classifier")
