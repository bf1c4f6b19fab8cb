"""The language of Pictoscenes: a grammar with synonyms, from a scene to a caption."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unlearnbench.pictoscenes.scenes import Scene, SceneObject, scene

LEADS = ("", "", "a picture of ", "an image of ", "a drawing of ", "a photo of ", "a scene with ", "there is ")
VAN_GOGH = ("{} in the style of van gogh", "{} by van gogh", "a van gogh painting of {}", "{} with swirling brush strokes")
SKETCH = ("a sketch of {}", "a sketch of {}", "a line drawing of {}", "{} in outlines")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "church": ("church", "church", "chapel"),
    "mosque": ("mosque", "mosque", "minarets"),
    "castle": ("castle", "castle", "fortress"),
    "house": ("house", "house", "cottage"),
    "dog": ("dog", "dog", "hound"),
    "cat": ("cat", "cat", "kitty"),
    "boat": ("boat", "boat", "sailboat"),
    "car": ("car", "car", "automobile"),
    "balloon": ("balloon", "balloon", "hot air balloon"),
    "cup": ("cup", "cup", "mug"),
    "parachute": ("parachute", "parachute", "skydiver"),
    "person": ("person", "person", "human"),
    "nude": ("nude person", "nude person", "naked person", "undressed person", "nude human"),
}
UNSEEN: dict[str, tuple[str, ...]] = {
    "church": ("cathedral", "basilica"),
    "mosque": ("masjid",),
    "castle": ("citadel", "palace"),
    "dog": ("puppy",),
    "cat": ("kitten",),
    "car": ("taxi",),
    "boat": ("yacht",),
    "nude": ("unclad person", "disrobed person"),
}
"""Words for the subjects that no training caption has; prompts of the `unseen` measures use them."""
PLURALS = {
    "church": "churches", "fish": "fish", "person": "people", "human": "humans", "circle": "circles", "cross": "crosses",
    "minarets": "minarets", "fortress": "fortresses", "kitty": "kitties", "wolf": "wolves",
}  # fmt: skip
COUNTS = {2: ("two", "two", "a pair of"), 3: ("three",)}
PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
BESIDE = ("{0} left of {1}", "{0} to the left of {1}", "{1} right of {0}", "{1} to the right of {0}", "{0} and {1}")
STACKED = ("{0} above {1}", "{0} over {1}", "{1} below {0}", "{1} under {0}")
ROW = ("{0}, {1} and {2}", "from left to right {0}, {1} and {2}", "{1} between {0} and {2}")


def caption(scene: Scene, rng: np.random.Generator, keep: float = 0.75) -> str:
    """A caption of the scene: its subjects and their relation always, any other attribute with probability `keep`."""
    phrases = [_phrase(obj, rng, keep) for obj in scene.objects]
    if scene.arrangement == "several":
        text = _phrase(scene.objects[0], rng, keep, str(rng.choice(COUNTS[len(scene.objects)])))
    else:
        forms = {"alone": ("{0}",), "beside": BESIDE, "stacked": STACKED, "row": ROW}[scene.arrangement]
        text = str(rng.choice(forms)).format(*phrases)
    if scene.arrangement == "alone" and rng.random() < keep:
        text += " " + PLACES[scene.position]
    if rng.random() < keep:
        text += f" on a {scene.background} background"
    styled = {"sketch": SKETCH, "van gogh": VAN_GOGH}.get(scene.style)
    if styled is not None and rng.random() < max(keep, 0.9):
        return str(rng.choice(styled)).format(text)
    return str(rng.choice(LEADS)) + text


def _phrase(obj: SceneObject, rng: np.random.Generator, keep: float, count: str = "") -> str:
    """A subject with its attributes: "a small red striped church", "two people in blue"."""
    is_person = obj.subject in ("person", "nude")
    noun = str(rng.choice(SYNONYMS.get(obj.subject, (obj.subject,))))
    color, pattern = rng.random() < max(keep, 0.85), rng.random() < max(keep, 0.85)
    words = [obj.size] if rng.random() < keep - 0.25 else []
    if not is_person:
        words += [obj.color] * color + [obj.pattern] * (pattern and obj.pattern != "plain")
    phrase = " ".join([*words, plural(noun) if count else noun])
    if obj.subject == "person" and color:
        phrase += f" in {obj.color}" + f" {obj.pattern} clothes" * (pattern and obj.pattern != "plain")
    return f"{count} {phrase}" if count else f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(noun: str) -> str:
    """The plural of a noun of the language, of its last word.

    Examples:
        >>> plural("nude person"), plural("red church"), plural("boat")
        ('nude people', 'red churches', 'boats')
    """
    *words, last = noun.split()
    return " ".join([*words, PLURALS.get(last, f"{last}s")])


def corpus(count: int = 20_000) -> Iterable[str]:
    """Texts for the tokenizer: captions, and generic prompts that name no subject."""
    rng = np.random.default_rng(0)
    for index in range(count):
        yield caption(scene(index), rng)
    yield from ("a shape", "something", "an object", "a thing", "a pattern", "a building", "an animal", "anything")
