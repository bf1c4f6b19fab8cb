"""Phrases in prompts: normalised text, whole words in any script, and plurals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from unicodedata import category, normalize

# Thai to Khmer, Japanese and Chinese write no space between words; Korean joins particles to a word.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3031-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
APOSTROPHES = "'\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07"
IRREGULAR = {"man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet", "goose": "geese",
             "mouse": "mice", "tooth": "teeth"}  # fmt: skip


def normal_text(text: str) -> str:
    """Text in which equal letters have equal code points (NFC), as text encoders read it."""
    return normalize("NFC", text)


@cache
def _edges() -> tuple[str, str]:
    """Look-arounds for the start and the end of a word: no letter or digit beside it, and no mark such as a vowel sign.

    Marks belong to the letter before them, but `\\w` matches none of them.
    """
    unspaced = re.compile(f"[{UNSPACED}]")
    marks = [code for code in range(0x300, 0x1E00) if category(chr(code)).startswith("M") and not unspaced.match(chr(code))]
    starts = [code for code in marks if code - 1 not in marks]
    ends = [code for code in marks if code + 1 not in marks]
    ranges = "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
    letter = rf"[^\W{UNSPACED}]"
    return rf"(?-i:(?<!{letter})(?<![{ranges}]))", rf"(?-i:(?!{letter})(?![{ranges}]))"


def find_phrases(text: str, phrases: Iterable[str]) -> Iterator[re.Match[str]]:
    """The places of the phrases in a normalised text, as whole words, in any case; where several match, the first in order.

    An apostrophe matches every kind of apostrophe, a space any white space. A phrase that ends in a sign, such as c++, ends
    there. In scripts without spaces between words a phrase matches anywhere.

    Examples:
        >>> [match.group() for match in find_phrases("a C++ logo, c++, objectivec++, c+", ["c++"])]
        ['C++', 'c++']
        >>> [match.group() for match in find_phrases("一座红色的教堂在山上", ["教堂"])]
        ['教堂']
    """
    return _pattern(tuple(phrases), text.isascii()).finditer(text)


@cache
def _pattern(phrases: tuple[str, ...], is_ascii: bool) -> re.Pattern[str]:
    """A pattern for texts in ASCII, which compiles a hundred times faster, or for all."""
    edges = (r"(?<!\w)", r"(?!\w)") if is_ascii else _edges()
    return re.compile("|".join(_phrase(normal_text(phrase).split(), *edges) for phrase in phrases) or "(?!)", re.IGNORECASE)


def _phrase(words: list[str], start: str, end: str) -> str:
    if not words:
        return "(?!)"
    unspaced = re.compile(f"[{UNSPACED}]")
    start, end = "" if unspaced.match(words[0]) else start, "" if unspaced.match(words[-1][-1]) else end
    return start + r"\s+".join(map(_word, words)) + end


def _word(word: str) -> str:
    return "".join(f"[{APOSTROPHES}]" if sign in APOSTROPHES else re.escape(sign) for sign in word)


def mentions(prompt: str, phrases: Iterable[str]) -> bool:
    """Whether the prompt contains one of the phrases as whole words, in any case (see `find_phrases`)."""
    return next(find_phrases(normal_text(prompt), phrases), None) is not None


def plural(phrase: str) -> str | None:
    """The English plural of a phrase's last word; None if the phrase does not end in an English letter.

    Examples:
        >>> [plural(word) for word in ("church", "van gogh", "nude person", "lady", "c++")]
        ['churches', 'van goghs', 'nude people', 'ladies', None]
    """
    rest, word = re.fullmatch(r"(.*?)([a-z]*)", phrase, re.IGNORECASE | re.DOTALL).groups()  # type: ignore[union-attr]
    lowered = word.lower()
    if not word or (rest and re.match(r"\w", rest[-1])):
        return None
    if lowered in IRREGULAR:
        return rest + IRREGULAR[lowered]
    if re.search(r"(s|x|z|ch|sh)$", lowered):
        return rest + word + "es"
    if re.search(r"[^aeiou]y$", lowered):
        return rest + word[:-1] + "ies"
    return rest + word + "s"


@cache
def with_plurals(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The phrases and their plurals, without repetition."""
    plurals = (plural(phrase.strip()) for phrase in phrases)
    return tuple(dict.fromkeys([*phrases, *(text for text in plurals if text)]))


@cache
def replacements(anchors: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Phrases and their anchors, and the plurals of both unless the plural has an anchor of its own; longest phrase first.

    Examples:
        >>> replacements((("church", "house"), ("van gogh", "monet")))
        [('van goghs', 'monets'), ('churches', 'houses'), ('van gogh', 'monet'), ('church', 'house')]
    """
    plurals = {plural(phrase): plural(anchor) or anchor for phrase, anchor in anchors}
    exchanged = {phrase: anchor for phrase, anchor in plurals.items() if phrase is not None} | dict(anchors)
    return sorted(exchanged.items(), key=lambda pair: len(pair[0]), reverse=True)


def without_phrases(prompt: str, phrases: Iterable[str]) -> str:
    """The prompt without the phrases and their plurals.

    Examples:
        >>> without_phrases("two churches on a hill, a church", ["church"])
        'two on a hill, a'
    """
    text = normal_text(prompt)
    listed = sorted(with_plurals(tuple(phrases)), key=len, reverse=True)
    for match in reversed(list(find_phrases(text, listed))):
        text = text[: match.start()] + text[match.end() :]
    return re.sub(r"\s+([,.;]|$)", r"\1", re.sub(r"\s+", " ", text)).strip(" ,")
