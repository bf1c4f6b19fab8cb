"""From a prompt of Pictoscenes back to what it names, and whether an image shows that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.pictoscenes.captions import PLACES, SYNONYMS, UNSEEN, plural
from unlearnbench.pictoscenes.detector import MOST, OF_IMAGE, OF_SUBJECT, Detection
from unlearnbench.pictoscenes.pictograms import SUBJECTS
from unlearnbench.pictoscenes.render import SIZE
from unlearnbench.pictoscenes.scenes import POSITIONS, REACH, SHARES, Scene, SceneObject

ATTRIBUTES = (*OF_SUBJECT, "count", "position", *OF_IMAGE)
"""What a prompt can name, as `correct` has it."""
_NUMBERS = {"two": 2, "a pair of": 2, "three": 3}
_STYLES = {"sketch": "sketch", "line drawing": "sketch", "in outlines": "sketch", "van gogh": "van gogh", "swirling": "van gogh"}
_ORDERS = {
    "left of": ("beside", 1), "right of": ("beside", -1), "from left to right": ("beside", 1),
    "above": ("stacked", 1), "over": ("stacked", 1), "below": ("stacked", -1), "under": ("stacked", -1),
}  # fmt: skip


def _subjects_by_noun() -> dict[str, str]:
    nouns = {subject: subject for subject in SUBJECTS}
    for words in (SYNONYMS, UNSEEN):
        nouns |= {noun: subject for subject, synonyms in words.items() for noun in synonyms}
    return nouns | {plural(noun): subject for noun, subject in nouns.items()}


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(sorted(phrases, key=len, reverse=True))})\b")


_SUBJECTS = _subjects_by_noun()
_NOUN = _any_of(_SUBJECTS)
_NUMBER, _STYLE, _ORDER, _BETWEEN = (_any_of(words) for words in (_NUMBERS, _STYLES, _ORDERS, ("between",)))
_OF_THING = {name: _any_of(OF_SUBJECT[name]) for name in ("color", "pattern", "size")}
_CLOTHES = re.compile(rf"\s+in ({'|'.join(OF_SUBJECT['color'])})(?: ({'|'.join(OF_SUBJECT['pattern'])}) clothes)?\b")
_BACKGROUND = re.compile(rf"\bon an? ({'|'.join(OF_IMAGE['background'])}) background\b")


@dataclass(frozen=True)
class Named:
    """What a prompt names.

    Attributes:
        objects: each subject with its attributes, from left to right or from top to bottom if the prompt says so; copies repeat.
        order: beside, stacked, between (from left to right or from right to left), or "" where the prompt names no order.
        position: where the only subject is, or "".
        whole: the background and the style, as far as they are named.
    """

    objects: tuple[Mapping[str, str], ...]
    order: str
    position: str
    whole: Mapping[str, str]


def parse(prompt: str) -> Named:
    """What a prompt names: words outside the grammar are passed over.

    Examples:
        >>> named = parse("a sketch of a small red church right of a person in blue striped clothes on a white background")
        >>> [dict(obj) for obj in named.objects]
        [{'subject': 'person', 'color': 'blue', 'pattern': 'striped'}, {'subject': 'church', 'color': 'red', 'size': 'small'}]
        >>> named.order, dict(named.whole)
        ('beside', {'background': 'white', 'style': 'sketch'})
        >>> [obj["subject"] for obj in parse("three cottages").objects]
        ['house', 'house', 'house']
    """
    text = " ".join(prompt.lower().split())
    whole = {"background": match.group(1)} if (match := _BACKGROUND.search(text)) else {}
    whole |= {"style": _STYLES[match.group(1)]} if (match := _STYLE.search(text)) else {}
    objects, links, rest = _objects(_BACKGROUND.sub("", text))
    order, direction = next((_ORDERS[match.group(1)] for link in links if (match := _ORDER.search(link))), ("", 1))
    if any(map(_BETWEEN.search, links)) and len(objects) == 3:
        order, objects = "between", [objects[1], objects[0], objects[2]]
    position = next((name for name, phrase in PLACES.items() if phrase in rest), "") if len(objects) == 1 else ""
    return Named(tuple(objects[::direction]), order, position, whole)


def _objects(text: str) -> tuple[list[dict[str, str]], list[str], str]:
    """The subjects in the order of the text, the texts before and between them, and the text behind the last."""
    objects: list[dict[str, str]] = []
    links, end = [], 0
    for noun in _NOUN.finditer(text):
        link = text[end : noun.start()]
        end, obj = noun.end(), {"subject": _SUBJECTS[noun.group(1)]}
        obj |= {name: match.group(1) for name, pattern in _OF_THING.items() if (match := pattern.search(link))}
        if obj["subject"] == "person" and (clothes := _CLOTHES.match(text, end)):
            end = clothes.end()
            obj |= {name: value for name, value in zip(("color", "pattern"), clothes.groups(), strict=True) if value}
        if obj["subject"] == "nude":
            obj = {name: value for name, value in obj.items() if name not in ("color", "pattern")}
        number = _NUMBERS[match.group(1)] if (match := _NUMBER.search(link)) else 1
        objects += [obj] * number
        links.append(link)
    return objects, links, text[end:].strip(" .,!")


def complete(prompt: str, rng: np.random.Generator) -> Scene:
    """A scene that the prompt describes; colours, sizes and the background are drawn where
    it does not name them; patterns are then plain and the style flat, for captions name others.

    A prompt that names no subject gives a random scene, and of one that names more than three the first three count.
    """
    named = parse(prompt)
    drawn = Scene.draw(rng)
    background, style = named.whole.get("background", drawn.background), named.whole.get("style", "flat")
    if not named.objects:
        return Scene(drawn.objects, drawn.arrangement, drawn.position, background, style)
    objects: list[SceneObject] = []
    for obj in named.objects[:MOST]:
        same = next((i for i, other in enumerate(named.objects[: len(objects)]) if other is obj), None)
        objects.append(_filled(obj, rng) if same is None else objects[same])
    return Scene(tuple(objects), _arrangement(objects, named.order), named.position or "middle", background, style)


def _filled(named: Mapping[str, str], rng: np.random.Generator) -> SceneObject:
    drawn = SceneObject.draw(rng)
    return SceneObject(**{"color": drawn.color, "pattern": "plain", "size": drawn.size, **named})


def _arrangement(objects: Sequence[SceneObject], order: str) -> str:
    if len(objects) == 1:
        return "alone"
    if len(set(objects)) == 1:
        return "several"
    arrangement = ("stacked" if order == "stacked" else "beside") if len(objects) == 2 else "row"
    assert arrangement in SHARES
    return arrangement


def correct(named: Named, whole: Mapping[str, str], detections: Sequence[Detection]) -> dict[str, bool]:
    """Whether an image shows what a prompt names: each attribute that is named.

    subject: every subject is there. count: there is nothing else. color, pattern, size: those of every subject, each its own.
    position: the subjects stand in the named order, or the only one at its named place. background, style: of the image.
    """
    shown = assigned(named.objects, detections)
    flags = {"subject": None not in shown, "count": len(detections) == len(named.objects)} if named.objects else {}
    for name in OF_SUBJECT:
        if name != "subject" and any(name in obj for obj in named.objects):
            flags[name] = all(has(one, obj, name) for obj, one in zip(named.objects, shown, strict=True))
    if named.order or named.position:
        flags["position"] = in_place(named, shown)
    return flags | {name: whole[name] == value for name, value in named.whole.items()}


def has(one: Detection | None, obj: Mapping[str, str], *names: str) -> bool:
    """Whether a subject is there with those of these attributes that a prompt names."""
    return one is not None and all(one.attributes[name] == obj[name] for name in names if name in obj)


def assigned(objects: Sequence[Mapping[str, str]], detections: Sequence[Detection]) -> list[Detection | None]:
    """For each named subject one of the image, each of them once, the one in its colour first; None where there is none."""
    left = list(detections)
    shown: list[Detection | None] = []
    for obj in objects:
        same = [one for one in left if one.attributes["subject"] == obj["subject"]]
        best = max(same, key=lambda one: one.attributes["color"] == obj.get("color"), default=None)
        if best is not None:
            left.remove(best)
        shown.append(best)
    return shown


def in_place(named: Named, shown: Sequence[Detection | None]) -> bool:
    """Whether all subjects are there, in the named order; a single one nearer to its named place than to another."""
    there = [one for one in shown if one is not None]
    if len(there) < len(named.objects):
        return False
    if named.position:
        reach = REACH[there[0].attributes["size"]]
        return abs(2 * there[0].box.x / SIZE - 1 - (POSITIONS.index(named.position) - 1) * reach) < reach / 2
    along = [one.box.y if named.order == "stacked" else one.box.x for one in there]
    return along == sorted(along) or (named.order == "between" and along == sorted(along, reverse=True))
