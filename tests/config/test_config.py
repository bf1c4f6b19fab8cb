"""conf/: every yaml composes and builds; what is chosen wrongly is told."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from inspect import signature

import pytest
from omegaconf import DictConfig, OmegaConf
from shared_examples import by_kind

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.build import build, locate
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import CONF, GROUPS, choices
from unlearnbench.data.concept import Concept
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.base import Metric
from unlearnbench.models.base import TextToImage
from unlearnbench.sampling import Sampling

YAMLS = [(group, name) for group in GROUPS for name in choices(group)]
TUNED = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("tuned/*/*.yaml"))


def nodes(config):
    """Every mapping of a configuration that names a class."""
    if OmegaConf.is_dict(config):
        if "_target_" in config:
            yield config
        for key in config:
            yield from nodes(config._get_node(key))


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_a_yaml_begins_with_one_sentence_that_describes_it(group, name):
    lines = [line for line in (CONF / group / f"{name}.yaml").read_text().splitlines()[:2] if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert lines[0][-1] in ".?)"


@pytest.mark.parametrize(("group", "name"), YAMLS)
def test_a_yaml_states_every_field_of_its_class_and_no_other(group, name):
    for node in nodes(OmegaConf.load(CONF / group / f"{name}.yaml")):
        cls = locate(node._target_, object)
        assert set(node) - {"_target_"} == {field.name for field in fields(cls) if field.init}, cls


def test_the_root_config_states_every_field_of_its_parts():
    for node in nodes(OmegaConf.load(CONF / "config.yaml")):
        assert set(node) - {"_target_"} == set(signature(locate(node._target_, object)).parameters)


@pytest.mark.parametrize("name", by_kind(choices("algo")))
def test_an_algorithm_builds_under_the_name_of_its_file_and_tuning_varies_its_settings_around_the_defaults(name):
    algo = RunSpec.of(compose(f"algo={name}")).algo
    assert isinstance(algo, Unlearner)
    assert algo.name == name
    search = CONF / f"search/{name}.yaml"
    for setting, among in (OmegaConf.load(search) if search.is_file() else {}).items():
        default = getattr(algo, setting)
        if isinstance(among, DictConfig):
            assert among.low <= default <= among.high, (setting, default)
        else:
            assert default in among


def test_tuning_has_no_search_for_an_algorithm_that_is_not_there():
    assert {path.stem for path in (CONF / "search").glob("*.yaml")} <= set(choices("algo"))


@pytest.mark.parametrize("name", by_kind(choices("model"), ["pictoworld", "pictoscenes", "sd14"]))
@pytest.mark.parametrize(
    "concept", [name for name in choices("concept") if "anchors" in (CONF / f"concept/{name}.yaml").read_text()]
)
def test_a_concept_builds_on_a_model_with_anchors_and_a_detector_of_its_domain(name, concept):
    config = compose(f"model={name}")
    config.concept = compose(f"concept={concept}").concept
    domains, own = OmegaConf.load(CONF / f"concept/{concept}.yaml").anchors.keys(), config.model.domain
    if own not in domains:
        known = ", ".join(domains)
        with pytest.raises(UserError, match=f"concept {concept} has no anchors for the domain {own}; .*known: {known}"):
            RunSpec.of(config)
        return
    spec = RunSpec.of(config)
    assert isinstance(spec.model, TextToImage)
    assert isinstance(spec.concept, Concept)
    assert spec.concept.name == concept
    assert spec.concept.anchor == spec.concept.anchors[spec.model.domain]
    assert spec.model.domain in spec.concept.detector
    assert spec.sample.steps == spec.model.steps


@pytest.mark.parametrize("name", choices("metrics"))
def test_a_metric_or_suite_builds(name):
    needed = ["metrics.geneval.specs=specs.jsonl"] if name == "geneval" else []  # which has no default
    metrics = RunSpec.of(compose(f"metrics={name}", *needed)).metrics
    assert metrics
    assert all(isinstance(metric, Metric) for metric in metrics.values())


@pytest.mark.parametrize("name", choices("retain"))
def test_a_retain_set_builds(name):
    assert RunSpec.of(compose(f"retain={name}")).retain.splits


@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_builds(name):
    assert RunSpec.of(compose(f"experiment={name}")).metrics


@pytest.mark.thorough
@pytest.mark.parametrize("path", TUNED)
def test_tuned_settings_belong_to_a_model_and_an_algorithm_and_take_effect(path):
    _, model, algo = path.split("/")
    built = RunSpec.of(compose(f"algo={algo}", *([f"model={model}"] if model != "pictoworld" else [])))
    for key, value in OmegaConf.load(CONF / f"{path}.yaml").items():
        assert getattr(built.algo, key) == value


def test_overrides_beat_the_experiment_which_beats_the_tuned_settings():
    assert compose("experiment=smoke", "model=pictoworld", "algo=ga").algo.steps == 2
    assert compose("experiment=smoke", "algo.steps=3").algo.steps == 3
    assert compose("algo=ga", "algo.lr=0.5").algo.lr == 0.5


def test_a_configuration_that_was_composed_before_is_a_copy_of_its_own():
    compose("algo=ga").algo.lr = 0.5
    assert compose("algo=ga").algo.lr != 0.5


def test_a_composed_configuration_follows_the_environment_and_changes_of_conf(monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", "one")
    assert compose("algo=ga").cache == "one"
    monkeypatch.setenv("UNLEARNBENCH_CACHE", "other")
    assert compose("algo=ga").cache == "other"
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr("unlearnbench.config.compose.CONF", tmp_path / "conf")
    assert compose("algo=ga").seed == 0
    path = tmp_path / "conf/config.yaml"
    path.write_text(path.read_text().replace("seed: 0  ", "seed: 5  ", 1))
    assert compose("algo=ga").seed == 5


def test_several_metrics_are_chosen_as_a_list():
    assert list(compose("metrics=[integrity,clipscore]").metrics) == ["integrity", "clipscore"]


@dataclass
class Part:
    """A component for `build`."""

    count: int
    ratio: float = 0.5

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count: {self.count} is less than 1")


HERE = f"{__name__}.Part"


def test_build_makes_the_class_with_the_types_that_it_declares():
    result = build({"_target_": HERE, "count": "3", "ratio": 1}, Part, "part")
    assert result == Part(3, 1.0)
    assert isinstance(result.ratio, float)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": HERE, "cuont": 1}, "part.cuont: no such setting of Part; did you mean 'count'? known: count, ratio"),
        ({"_target_": HERE, "count": "x"}, "part.count: Value 'x' of type 'str' could not be converted to Integer"),
        ({"_target_": HERE}, "part.count: must be given"),
        ({"_target_": HERE, "count": 0}, "part.count: 0 is less than 1"),
        ({"_target_": None}, "part._target_: must be given, as the dotted path of "),
        ({"_target_": "Part"}, "_target_: Part: not a dotted path, such as "),
        ({"_target_": "os.system", "command": "true"}, "_target_: os.system is not a subclass of"),
        ({"_target_": "subprocess.Popen", "args": "true"}, "_target_: subprocess.Popen is not a subclass of"),
        ({"_target_": "nowhere.Thing"}, "_target_: nowhere.Thing: cannot be imported"),
        ({"_target_": "unlearnbench.sampling.Samplign"}, "cannot be imported"),
        ({"count": 1}, "_target_"),
    ],
)
def test_build_refuses_what_is_not_of_the_class(node, message):
    with pytest.raises(UserError) as refusal:
        build(node, Part, "part")
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_suggest_begins_with_a_similar_name_and_lists_all():
    assert suggest("gaa", ["ga", "esd_x"]) == "did you mean 'ga'? known: esd_x, ga"
    assert suggest("zzz", ["ga", "esd_x"]) == "known: esd_x, ga"


@pytest.mark.parametrize("field", ["per_prompt", "steps", "batch", "prompts"])
def test_sampling_refuses_less_than_one(field):
    with pytest.raises(ValueError, match=f"{field}: 0 is less than 1"):
        Sampling(**{field: 0})
