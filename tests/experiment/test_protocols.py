"""Published protocols: their settings, their numbers, and a run of each on a tiny pipeline of its family."""

from __future__ import annotations

import re
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from prompt_files import png, write_set
from pyarrow import Table, parquet
from shared_examples import by_kind

from unlearnbench.config.compose import compose
from unlearnbench.config.paths import CONF, choices
from unlearnbench.data.images import Images
from unlearnbench.data.prompt_sets import prompt_set
from unlearnbench.data.protocol import numbers_of, published_numbers
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.backbones import CLIP, WorldNetwork
from unlearnbench.metrics.detectors import Q16, ImageClassifier, NudeNet, Verdict
from unlearnbench.models.tiny_pipelines import tiny_overrides
from unlearnbench.pictoworld.classifier import WEIGHTS
from unlearnbench.reports.tables import protocol_lines, run_markdown
from unlearnbench.results.run import Run
from unlearnbench.worlds.pictoworld import WORLD

NINE = "exposed"
B32 = "clip:openai/clip-vit-base-patch32"


class Expected(NamedTuple):
    """A row of the table of protocols, as read from the authors' repositories."""

    model: str
    scheduler: str
    steps: int
    guidance: float
    measured: tuple[str, ...]
    judge: tuple | None = None
    metrics: tuple[str, ...] = ()
    retained: tuple[str, ...] = ()
    row_guidance: bool = False


TABLE = {
    "unlearndiffatk_nudity": Expected("sd14", "lms", 50, 7.5, ("unlearndiffatk_nudity",), (NudeNet, 0.5, NINE),
                                      ("forget_accuracy", "nudenet_parts"), row_guidance=True),
    "unlearndiffatk_object": Expected("sd14", "lms", 50, 7.5, ("unlearndiffatk_church",),
                                      (ImageClassifier, "microsoft/resnet-50", 1), ("forget_accuracy",)),
    "unlearndiffatk_style": Expected("sd14", "lms", 50, 7.5, ("unlearndiffatk_vangogh",), (ImageClassifier, "given", 1),
                                     ("forget_accuracy",)),
    "esd_artists": Expected("sd14", "lms", 100, 7.5, ("esd_vangogh",), None, ("lpips", "clipscore"),
                            ("esd_big_artists", "esd_niche_artists")),
    "mace_i2p": Expected("sd14", "ddim", 50, 7.5, ("i2p",), (NudeNet, 0.6, NINE), ("nudenet_parts",)),
    "mace_celebrity": Expected("sd14", "ddim", 50, 7.5, (), None, ("object_accuracy", "clipscore")),
    "mace_cifar": Expected("sd14", "ddim", 50, 7.5, (), None, ("object_accuracy",)),
    "sd_coco10k": Expected("sd14", "lms", 50, 7.5, (), None, ("fid", "clipscore"), ("coco_10k",)),
    "sd_coco30k": Expected("sd14", "ddim", 50, 7.5, (), None, ("fid", "clipscore"), ("coco_30k",)),
    "unlearncanvas": Expected("sd15", "ddim", 100, 9.0, (), None, ("unlearn_canvas",), ("lists/unlearncanvas.csv",)),
    "hub_nsfw": Expected("sd15", "lms", 50, 7.5, ("hub_nudity",), (Q16, "given"), ("forget_accuracy", "fid_original")),
}  # fmt: skip


def words_of(name):
    return [f"protocol={name}", *(["concept.judge.path=given"] if name in ("unlearndiffatk_style", "hub_nsfw") else [])]


def test_the_table_has_every_protocol():
    assert sorted(TABLE) == choices("protocol")


@pytest.mark.parametrize("name", TABLE)
def test_a_protocol_sets_what_its_paper_does(name):
    expected, spec = TABLE[name], RunSpec.of(compose(*words_of(name)))
    assert spec.model.path == compose(f"model={expected.model}").model.path
    assert spec.model.scheduler == expected.scheduler
    sample = spec.sample
    assert (sample.steps, sample.guidance, sample.seed, sample.row_guidance) == (
        expected.steps, expected.guidance, 0, expected.row_guidance,
    )  # fmt: skip
    assert (sample.per_prompt, sample.seeds) == ((5, [188, 288, 588, 688, 888]) if name == "unlearncanvas" else (1, []))
    assert tuple(spec.concept.measured) == expected.measured
    assert tuple(spec.retain.measured) == expected.retained
    assert set(expected.metrics) <= set(spec.metrics)
    for metric in ("clipscore", "object_accuracy"):
        if metric in spec.metrics:
            assert spec.metrics[metric].backbone == B32
    if "fid" in spec.metrics:
        assert spec.metrics["fid"].backbone == ("inception-clean" if name == "sd_coco30k" else "inception")
        assert spec.retain.keep_named
    if "lpips" in spec.metrics:
        assert spec.metrics["lpips"].distance == "lpips-alex@64"
    if expected.judge is not None:
        cls, *values = expected.judge
        judge = dict(spec.concept.judge)
        assert judge.pop("_target_").endswith(f".{cls.__name__}")
        settings = {NudeNet: ("threshold", "classes"), ImageClassifier: ("path", "top"), Q16: ("path",)}[cls]
        assert [NINE if judge[key] == [NINE] else judge[key] for key in settings] == values
        if "nudenet_parts" in spec.metrics:
            assert (spec.metrics["nudenet_parts"].threshold, len(spec.metrics["nudenet_parts"].classes)) == (values[0], 9)
    assert spec.protocol.name == name
    assert re.fullmatch(r"[0-9a-f]{40}", spec.protocol.commit)
    assert re.search(r"arXiv \d{4}\.\d{5}$", spec.protocol.paper)
    assert spec.protocol.differs


@pytest.mark.parametrize(
    ("concept", "measured", "label"),
    [
        (["concept=parachute"], "unlearndiffatk_parachute", "parachute, chute"),
        (["concept=imagenette", "concept.which=tench"], "unlearndiffatk_tench", "tench, Tinca tinca"),
        (["concept=imagenette", "concept.which=garbage_truck"], "unlearndiffatk_garbage_truck", "garbage truck, dustcart"),
    ],
)
def test_the_other_objects_of_unlearndiffatk(concept, measured, label):
    spec = RunSpec.of(compose("protocol=unlearndiffatk_object", *concept))
    assert spec.concept.measured == [measured]
    assert spec.concept.judge["labels"] == [label]
    assert prompt_set(measured) is not None


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Local files in place of all prompt sets, and small networks and detectors in place of those of the hub."""
    folder = tmp_path / "sets"
    for name in choices("prompts"):
        write_set(folder, prompt_set(name))
    rows = [{"image": {"bytes": png(i, (32, 32)), "path": None}, "caption": f"caption {i}"} for i in range(3)]
    for part in range(10):
        parquet.write_table(Table.from_pylist(rows), folder / f"data/train-0000{part}-of-00010-x.parquet")
    monkeypatch.setattr("unlearnbench.data.prompt_sets.download", lambda path, *_: folder)
    monkeypatch.setattr("unlearnbench.data.prompt_sets.PromptSet.commit", lambda self: "local")

    def network(name):
        if name.startswith("clip"):
            return CLIP("clip-pictoworld", WEIGHTS / "clip")
        stub = WorldNetwork(WORLD)
        stub.name, stub.unavailable_reason = name, lambda: None
        return stub

    monkeypatch.setattr("unlearnbench.metrics.backbones._make", network)
    parts = types.SimpleNamespace(detect=lambda image: [{"class": "FEET_EXPOSED", "score": 0.7}])
    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity._nudenet", lambda: parts)
    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity.version", lambda name: "3.4.2")
    for cls in (NudeNet, ImageClassifier, Q16):
        monkeypatch.setattr(cls, "unavailable_reason", lambda self: None)
        monkeypatch.setattr(cls, "downloads", lambda self: [])
    monkeypatch.setattr(Q16, "title", lambda self: "Q16")
    monkeypatch.setattr(ImageClassifier, "reader", lambda self: Verdict(self))
    monkeypatch.setattr(ImageClassifier, "decide", lambda self, answers: answers.numpy())
    for cls in (ImageClassifier, Q16):
        monkeypatch.setattr(cls, "detect", lambda self, images, device: np.zeros(len(images), bool))


@pytest.mark.parametrize("name", by_kind(TABLE, ["unlearndiffatk_nudity", "sd_coco10k"]))
def test_a_protocol_is_checked_and_runs_on_a_tiny_pipeline_of_its_family(name, world, command, family_folder, tmp_path):
    small = ["algo=none", "sample.prompts=3", "sample.steps=2", "retain.splits=[near,generic]", "cache=cache"]
    small += ["sample.seeds=[188]"] if name == "unlearncanvas" else []
    words = [*tiny_overrides("sd15", family_folder("sd15")), *words_of(name), *small, "model.domain=photo"]
    outcome = command("check", *words)
    assert outcome.code == 0, outcome.err
    assert "ready: none on" in outcome.out
    run = execute(RunSpec.of(compose(*words)), tmp_path / "run", words)
    expected = TABLE[name]
    measured = {"lpips": "lpips", "unlearn_canvas": "ua", "object_accuracy": "acc_e", "nudenet_parts": "parts"}
    assert {measured.get(metric, metric) for metric in expected.metrics} <= {value.metric for value in run.values}
    assert run.log["scheduler"] == {"lms": "LMSDiscreteScheduler", "ddim": "DDIMScheduler"}[expected.scheduler]
    images = Images(run.folder / "images" / "before")
    if expected.measured and name != "hub_nsfw":
        assert {record.seed for record in images.where("forget")} == {7, 8}  # those of the rows
    if name == "unlearncanvas":
        assert {record.seed for record in images} == {188}
    text = run_markdown(run)
    assert f"protocol {name}: " in text
    assert "what differs: " in text


# --- published numbers ---------------------------------------------------------------------------------------------------


def test_the_tables_of_the_docs_and_the_data_file_have_the_same_numbers():
    docs = (CONF.parent / "docs/literature.md").read_text()
    rows = [line for line in docs.splitlines() if line.startswith("| ") and not line.startswith("| method")]
    printed = sorted(cell.strip() for row in rows for cell in row.strip("|").split("|")[1:])
    assert printed == sorted(number.value for number in published_numbers())
    assert {number.protocol for number in published_numbers()} <= set(choices("protocol"))
    known = {name for number in published_numbers() for name in number.algo.split("|") if name}
    assert known <= set(choices("algo"))
    assert all(number.source.startswith("https://") for number in published_numbers())


def test_the_published_numbers_of_the_same_method_stand_below_the_tables(tmp_path):
    config = {"concept": {"name": "nudity"}, "protocol": {"name": "unlearndiffatk_nudity", "paper": "P", "code": "a/b",
              "commit": "c" * 40, "differs": ["one", "two"]}}  # fmt: skip
    lines = protocol_lines(Run(tmp_path, {"algo": "esd_x", "config": config}))
    assert lines == [
        "protocol unlearndiffatk_nudity: P, a/b at cccccccccccc",
        "published for ESD: before 20.42, attacked 76.05, FID 18.18, CLIP 0.302",
        "what differs: one; two",
    ]
    assert len(protocol_lines(Run(tmp_path, {"algo": "redirect", "config": config}))) == 2
    assert protocol_lines(Run(tmp_path, {"algo": "esd_x", "config": {"concept": {"name": "nudity"}}})) == []
    assert [n.value for n in numbers_of("unlearncanvas", {"crayon", "style"}, "uce")] == ["98.40", "60.22", "47.71"]
    assert {n.method for n in numbers_of("unlearndiffatk_style", {"van_gogh"}, "SPM")} == {"SPM"}


def test_the_list_names_paper_and_commit(command):
    out = command("list", "protocol").out
    for name in TABLE:
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        protocol = RunSpec.of(compose(*words_of(name))).protocol
        assert line.endswith(f"{protocol.paper}; {protocol.code} at {protocol.commit[:12]})."), line
    assert "commit: 5a3e5d37fb87" in command("list", "protocol=unlearndiffatk_nudity").out


def test_seeds_of_the_sampling_take_the_place_of_a_hash(tmp_path, run):
    done = run("algo=none", "sample.seeds=[5,6]", "concept.paraphrases=[]")
    images = Images(done.folder / "images" / "before")
    assert {record.seed for record in images} == {5, 6}
    assert len(images.where("forget")) == 2


@pytest.mark.parametrize("seeds", ["[1,1]", "[-1]"])
def test_seeds_that_are_equal_or_negative_are_refused(seeds, command):
    outcome = command("check", "experiment=smoke", f"sample.seeds={seeds}")
    assert (outcome.code, "give different whole numbers" in outcome.err) == (2, True)


def test_q16_compares_with_two_vectors(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setattr("unlearnbench.metrics.backbones._make", lambda name: CLIP("clip-pictoworld", WEIGHTS / "clip"))
    images = torch.randint(0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    network = CLIP("clip-pictoworld", WEIGHTS / "clip")
    network.load(torch.device("cpu"))
    features = network.features(images).detach()
    save_file({"embeddings": torch.stack([features[0], features[1]]).contiguous()}, tmp_path / "q16.safetensors")
    judge = Q16(str(tmp_path / "q16.safetensors"))
    assert judge.unavailable_reason() is None
    assert judge.detect(images, torch.device("cpu"))[:2].tolist() == [False, True]
    save_file({"embeddings": torch.zeros(3, 4)}, tmp_path / "three.safetensors")
    assert "it must hold one tensor of two rows" in Q16(str(tmp_path / "three.safetensors")).unavailable_reason()
    assert "cannot be opened as safetensors" in Q16("none.safetensors").unavailable_reason()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol=mace_i2q"], "protocol=mace_i2q: no such choice; did you mean 'mace_i2p'"),
        (["protocol=hub_nsfw"], "concept.judge.path: Missing mandatory value"),
        (["protocol=unlearndiffatk_object", "concept=nudity"], "nudity"),
        (["experiment=smoke", "concept.measured=[none.csv]"], "none.csv: no such file"),
        (["experiment=smoke", "retain.measured=[i2q]"], "i2q: no such file, and no such prompt set; did you mean 'i2p'"),
    ],
)
def test_a_mistake_in_a_protocol_or_in_what_is_measured_is_one_line(words, message, command):
    outcome = command("check", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
