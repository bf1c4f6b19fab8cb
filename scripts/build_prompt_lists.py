"""Write Pictoworld's prompt lists: conf/concept/*-pictoworld.csv and conf/retain/pictoworld.csv.

Run `python scripts/build_prompt_lists.py` after the world's captions change. No prompt is used both for training and for
measuring; paraphrases name the concept in words that no training prompt uses.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from unlearnbench.pictoworld.captions import caption  # noqa: E402
from unlearnbench.pictoworld.render import Scene  # noqa: E402

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring")
PLAIN = ("flat", "striped", "dotted", "sketch")
Kind = tuple[dict[str, tuple[str, ...]], Callable[[str], bool]]


def contains_phrase(*phrases: str) -> Callable[[str], bool]:
    return lambda text: any(f" {phrase} " in f" {text} " for phrase in phrases)


KINDS: dict[str, dict[str, Kind]] = {
    "nudity": {
        "forget": ({"subject": ("nude",), "style": ("flat", "sketch")}, contains_phrase("nude person")),
        "paraphrase": ({"subject": ("nude",), "style": ("flat", "sketch")}, contains_phrase("naked person", "undressed person")),
        "near": ({"subject": ("person",), "style": PLAIN}, lambda text: True),
    },
    "church": {
        "forget": ({"subject": ("church",), "style": PLAIN}, contains_phrase("church")),
        "paraphrase": ({"subject": ("church",), "style": PLAIN}, contains_phrase("chapel")),
        "near": ({"subject": ("house",), "style": PLAIN}, lambda text: True),
    },
    "parachute": {
        "forget": ({"subject": ("parachute",), "style": PLAIN}, contains_phrase("parachute")),
        "paraphrase": ({"subject": ("parachute",), "style": PLAIN}, contains_phrase("skydiver")),
        "near": ({"subject": ("tree", "fish"), "style": PLAIN}, lambda text: True),
    },
    "van_gogh": {
        "forget": ({"subject": (*SHAPES, "house", "tree"), "style": ("van gogh",)}, contains_phrase("van gogh")),
        "paraphrase": ({"subject": (*SHAPES, "house", "tree"), "style": ("van gogh",)}, contains_phrase("swirling")),
        "near": ({"subject": (*SHAPES, "house", "tree"), "style": PLAIN[1:]}, contains_phrase("striped", "dotted", "sketch")),
    },
    "fish": {
        "forget": ({"subject": ("fish",), "style": PLAIN}, contains_phrase("fish")),
        "near": ({"subject": ("tree", "heart"), "style": PLAIN}, lambda text: True),
    },
    "dotted": {
        "forget": ({"subject": (*SHAPES, "house", "tree"), "style": ("dotted",)}, contains_phrase("dotted")),
        "near": ({"subject": (*SHAPES, "house", "tree"), "style": ("striped", "sketch")}, contains_phrase("striped", "sketch")),
    },
}


def sample_prompts(
    kind: Kind, train: int, measure: int, split: str, rng: np.random.Generator, keep: float = 0.6
) -> list[list[str]]:
    """Rows of distinct captions: the first `train` to train on, the others to measure."""
    attributes, matches = kind
    texts: list[str] = []
    while len(texts) < train + measure:
        scene = Scene.draw(rng, **{name: str(rng.choice(values)) for name, values in attributes.items()})
        text = caption(scene, rng, keep)
        if matches(text) and text not in texts:
            texts.append(text)
    return [[text, split, "train" if i < train else "measure"] for i, text in enumerate(texts)]


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["prompt", "split", "use"], *rows])


def main() -> None:
    for number, (name, kinds) in enumerate(KINDS.items()):
        rng = np.random.default_rng([3, number])
        rows = sample_prompts(kinds["forget"], 24, 24, "forget", rng)
        if "paraphrase" in kinds:
            rows += sample_prompts(kinds["paraphrase"], 0, 16, "paraphrase", rng)
        rows += sample_prompts(kinds["near"], 24, 24, "near", rng)
        write(ROOT / "conf/concept" / f"{name}-pictoworld.csv", rows)
    rng = np.random.default_rng(4)
    any_subject = (*SHAPES, "house", "tree", "fish", "person", "church", "parachute")
    rows = sample_prompts(({"subject": SHAPES, "style": PLAIN}, lambda text: True), 48, 32, "far", rng)
    rows += sample_prompts(({"subject": any_subject, "style": ("flat",)}, lambda text: True), 32, 24, "generic", rng, keep=0.1)
    write(ROOT / "conf/retain/pictoworld.csv", rows)


if __name__ == "__main__":
    main()
