"""A control: the concept's words are exchanged in the prompt before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.algos.rewritten_prompts import PromptFilter, RewrittenPrompts
from unlearnbench.algos.training import Training, Unlearned


@dataclass
class WordSwap(PromptFilter):
    """Replace the concept's phrases in each prompt by the anchor's ("a red church" becomes "a red tree"); no weight changes.

    This is no unlearning. A method that scores no better under a probe hides the concept behind its name.
    """

    needs_anchors: ClassVar[bool] = True

    def update(self, training: Training) -> Unlearned:
        """Return the guidance that encodes the rewritten prompt; changes no parameter."""
        return Unlearned([], RewrittenPrompts(training.concept.substitute))
