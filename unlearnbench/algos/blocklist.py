"""A control: the concept's words are dropped from the prompt before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from unlearnbench.algos.rewritten_prompts import PromptFilter, RewrittenPrompts
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.data.phrases import without_phrases


@dataclass
class Blocklist(PromptFilter):
    """Drop the phrases and words that name the concept, plurals included, from each prompt; no weight changes.

    This is no unlearning, but the filter of words that services put in front of a model.
    """

    def update(self, training: Training) -> Unlearned:
        """Return the guidance that encodes the prompt without the words; changes no parameter."""
        return Unlearned([], RewrittenPrompts(partial(without_phrases, phrases=training.concept.name_phrases())))
