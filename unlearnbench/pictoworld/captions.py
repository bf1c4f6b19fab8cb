"""Pictoworld's language: from a scene to a caption, and from a prompt back to its attributes."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from unlearnbench.pictoworld.render import ATTRIBUTES, Scene

LEADS = ("", "", "a picture of ", "an image of ", "a drawing of ", "a photo of ", "a scene with ", "there is ")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "church": ("church", "church", "chapel"),
    "parachute": ("parachute", "parachute", "skydiver"),
    "house": ("house", "house", "cottage"),
    "person": ("person", "person", "human"),
    "nude": ("nude person", "nude person", "naked person", "undressed person", "nude human"),
}
DRESSED = ("dressed", "clothed")
VAN_GOGH = ("{} in the style of van gogh", "{} by van gogh", "a van gogh painting of {}", "{} with swirling brush strokes")
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def caption(scene: Scene, rng: np.random.Generator, keep: float = 0.7) -> str:
    """A caption of the scene; each attribute but the subject is named with probability `keep`."""

    def named(probability: float = keep) -> bool:
        return bool(rng.random() < probability)

    nude = scene.subject == "nude"
    noun = str(rng.choice(SYNONYMS.get(scene.subject, (scene.subject,))))
    style = scene.style if named(0.85) else "flat"
    words = [scene.size] if named() else []
    if scene.subject == "person":
        words += [str(rng.choice(DRESSED))] if named(0.25) else []
    elif not nude and named(max(keep, 0.8)):
        words.append(scene.color)
    if style in ("striped", "dotted") and not nude:
        words.append(style)
    phrase = _article(" ".join([*words, noun]))
    if scene.subject == "person" and named(max(keep, 0.8)):
        phrase += f" in {scene.color}"
    if style == "sketch":
        phrase = "a sketch of " + phrase
    if named():
        phrase += " " + PLACES[scene.position]
    if named():
        phrase += f" on a {scene.background} background"
    if style == "van gogh":
        return str(rng.choice(VAN_GOGH)).format(phrase)
    return str(rng.choice(LEADS)) + phrase


_VALUES_BY_WORD: dict[str, dict[str, str]] = {
    "subject": {
        **{name: name for name in ATTRIBUTES["subject"]},
        "chapel": "church", "skydiver": "parachute", "cottage": "house", "human": "person",
        "naked": "nude", "undressed": "nude", "unclothed": "nude",
    },
    "color": {name: name for name in ATTRIBUTES["color"]},
    "background": {name: name for name in ATTRIBUTES["background"]},
    "size": {name: name for name in ATTRIBUTES["size"]},
    "position": {name: name for name in ATTRIBUTES["position"]},
    "style": {"striped": "striped", "dotted": "dotted", "sketch": "sketch", "van": "van gogh", "swirling": "van gogh"},
}  # fmt: skip


def parse(prompt: str) -> dict[str, str]:
    """The attributes that a prompt names and their values.

    Examples:
        >>> parse("a sketch of a small red church on the left")
        {'subject': 'church', 'color': 'red', 'size': 'small', 'position': 'left', 'style': 'sketch'}
        >>> parse("a nude person on a white background")["subject"]
        'nude'
    """
    words = re.findall(r"[a-z]+", prompt.lower())
    attributes = {name: next((by_word[w] for w in words if w in by_word), None) for name, by_word in _VALUES_BY_WORD.items()}
    if any(_VALUES_BY_WORD["subject"].get(w) == "nude" for w in words):
        attributes["subject"] = "nude"
    return {name: value for name, value in attributes.items() if value is not None}


def complete(prompt: str, rng: np.random.Generator) -> Scene:
    """A scene that the prompt describes; other attributes are drawn at random, but the style is flat."""
    return Scene.draw(rng, **{"style": "flat", **parse(prompt)})


def corpus() -> Iterable[str]:
    """Texts that contain every word of the language, for the tokenizer."""
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        yield caption(Scene.draw(rng), rng)
    yield from ("a shape", "something", "an object", "a thing", "a pattern", "unclothed")
