"""Words of a concept in prompts: in any script, with any apostrophe, in the plural; anchors in one pass; our lists as ever."""

from __future__ import annotations

import re
from itertools import islice
from unicodedata import normalize

import pytest
from omegaconf import OmegaConf

from unlearnbench.algos.mace import MACE
from unlearnbench.attacks.paraphrases import synonym
from unlearnbench.config.compose import compose
from unlearnbench.config.paths import CONF, choices, read_yaml
from unlearnbench.data.concept import Concept, mentions
from unlearnbench.data.prompts import read_prompts
from unlearnbench.data.retain_set import Retain
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.pictoworld.captions import corpus


def concept(words, anchor=None):
    return Concept("c", words, "", anchor or {}, words[0], {})


@pytest.mark.parametrize(
    ("word", "prompt", "named"),
    [
        ("c++", "a c++ logo", True),
        ("c++", "a logo of C++", True),
        ("c++", "an objectivec++ logo", False),
        ("Acme Inc.", "a statue of Acme Inc. in a park", True),
        ("Acme Inc.", "a statue of acme  inc., red", True),
        ("Acme (Horror)", "a portrait of Acme (Horror)", True),
        (".net", "the .NET logo", True),
        (".net", "the asp.net logo", False),
        ("教堂", "一座红色的教堂在山上", True),
        ("教堂", "一座房子", False),
        ("church", "一张church照片", True),
        ("教会", "赤い教会の写真", True),
        ("교회", "빨간 교회가 있는 그림", True),
        ("วัด", "ภาพวัดสีแดง", True),
        ("नदी", "एक नदी के पास", True),
        ("नद", "एक नदी के पास", False),
        (normalize("NFD", "Salvador Dalí"), "a boat by Salvador Dalí", True),
        ("Salvador Dalí", normalize("NFD", "a boat by Salvador Dalí, red"), True),
        ("dali", normalize("NFD", "a boat by dalí"), False),
        ("Hieronymus' owl", "Hieronymus’ owl", True),
        ("Bob’s", "a portrait of bob's dog", True),
        ("church", "two churches on a hill", True),
        ("church", "the church's door", True),
        ("church", "the church’s door", True),
        ("church", "a CHURCH bell", True),
        ("church", "a churchyard", False),
        ("nude person", "two nude people", True),
        ("fish", "Fishes", True),
        ("lady", "three ladies", True),
        ("van gogh", "a room of van goghs", True),
        ("van gogh", "a van\u00a0gogh", True),
    ],
)
def test_a_prompt_names_a_concept_by_its_words_and_their_plurals(word, prompt, named):
    assert concept([word]).is_named_in(prompt) is named


@pytest.mark.parametrize(
    ("anchor", "prompt", "exchanged"),
    [
        ({"church": "house", "house": "barn"}, "a church beside a house", "a house beside a barn"),
        ({"a": "b", "b": "a"}, "a b a", "b a b"),
        ({"教堂": "房子"}, "一座红色的教堂在山上", "一座红色的房子在山上"),
        ({normalize("NFD", "Salvador Dalí"): "a painter"}, "a boat by Salvador Dalí", "a boat by a painter"),
        ({"Acme Inc.": "person"}, "a portrait of Acme Inc. on the left", "a portrait of person on the left"),
        ({"Acme (Horror)": "person"}, "Acme (Horror), red", "person, red"),
        ({"Bob's": "a"}, "a photo of Bob’s dog", "a photo of a dog"),
        ({"van gogh painting": "picture", "a van gogh": "a monet"}, "a van gogh painting", "a picture"),
        ({"church": "house"}, "two Churches, a churchyard", "two houses, a churchyard"),
        ({"person": "dog", "people": "a crowd"}, "two people and a person", "two a crowd and a dog"),
        ({"person": "\u72ac"}, "two people", "two \u72ac"),
    ],
)
def test_anchors_replace_words_of_any_script_once(anchor, prompt, exchanged):
    assert Concept("c", [], "", anchor, "", {}).substitute(prompt) == exchanged


def test_plurals_of_a_concept_are_not_retained(tmp_path):
    texts = ["a boat", "two churches on a hill", "old chapels in the snow", "the church's door", "a churchyard"]
    (tmp_path / "retain.csv").write_text("prompt\n" + "\n".join(texts))
    (tmp_path / "concept.csv").write_text("prompt\na church\n")
    chosen = Concept("church", ["church", "chapel"], "concept.csv", {}, "church", {})
    assert [p.text for p in Retain("retain.csv").load(chosen)] == ["a boat", "a churchyard"]


def test_methods_that_need_the_words_tokens_do_not_take_a_plural_for_the_word():
    chosen = concept(["church"], {"churches": "houses"})
    assert chosen.naming_problem(["a church", "two churches"]).startswith("forget prompt 'two churches' contains none of church")
    assert "no forget prompt of c contains any of church" in MACE().incompatible_reason(chosen, ["two churches"])


def test_an_attack_finds_words_that_end_in_a_sign():
    assert synonym("a c++ logo", concept(["c++", "cpp"]), 0) == "a cpp logo"


# --- our own lists ------------------------------------------------------------------------------------------------------

PLURALS = re.compile(r"\b(fishes|skydivers)\b", re.IGNORECASE)


def named_before(prompt, words):
    return any(re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) for word in words)


def substituted_before(prompt, anchor):
    for phrase in sorted(anchor, key=len, reverse=True):
        prompt = re.sub(rf"\b{re.escape(phrase)}\b", anchor[phrase].replace("\\", r"\\"), prompt, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", prompt).strip(" ,")


def unchanged(chosen, texts):
    for text in texts:
        if not PLURALS.search(text):
            assert chosen.substitute(text) == substituted_before(text, chosen.anchor)
        assert mentions(text, chosen.name_phrases()) == named_before(text, chosen.name_phrases())
        if not PLURALS.search(text):  # "Fishes" names and exchanges the fish, "skydivers" the parachute: their plurals
            assert chosen.is_named_in(text) == named_before(text, chosen.words), (chosen.name, text)


def test_our_lists_name_and_exchange_the_same_words_as_with_plain_word_boundaries():
    lists = sorted({p.text for path in CONF.rglob("*.csv") for p in read_prompts(path.relative_to(CONF).as_posix())})
    texts = [*lists[::4], *islice(corpus(), 50)]
    for name in choices("concept"):
        domains = OmegaConf.load(CONF / f"concept/{name}.yaml").get("anchors", ["photo"])
        model = {"photo": "sd14"}.get(domain := next(iter(domains)), domain)
        settings = compose(f"concept={name}", f"model={model}")
        if "things" in settings.concept:
            settings.concept.which = next(iter(read_yaml(CONF / settings.concept.things)))
            chosen = RunSpec.of(settings).concept
            unchanged(chosen, {prompt.text for prompt in chosen.load()})
        else:
            unchanged(RunSpec.of(settings).concept, texts)
