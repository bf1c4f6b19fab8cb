"""The interface of attacks: what an attack knows of its target, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.config.ranges import at_least
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.models.base import CAPABILITIES, TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class AttackTarget:
    """An unlearned model, and what an attack may know of it.

    Attributes:
        model: the unlearned model.
        original: the original model; `with target.original() as model` opens it.
        concept: the unlearned concept.
        prompts: the forget prompts under attack, without duplicates.
        latents: of the original's image for each prompt, (n, c, h, w); empty if the attack needs no images.
        training: forget prompts outside the measurement.
        paraphrases: the concept's paraphrases.
        learned: tokens that an attack added to the tokenizer, with their embeddings (width,).
    """

    model: TextToImage
    original: Frozen
    concept: Concept
    prompts: list[str]
    latents: Tensor
    training: list[str] = field(default_factory=list)
    paraphrases: list[str] = field(default_factory=list)
    learned: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """One attacked prompt.

    Attributes:
        prompt: the original prompt, which is the control.
        attacked: the adversarial prompt.
        kind: the row of the table in which the attempt counts; "" if the attack has one row.
        first: the attack's objective at its start, if it has one; lower is better for the attack.
        last: the objective at its end.
        candidates: every prompt that the search scored, in order.
    """

    prompt: str
    attacked: str
    kind: str = ""
    first: float | None = None
    last: float | None = None
    candidates: tuple[str, ...] = ()

    def improved(self, attacked: str, score: float) -> Attempt:
        """The attempt with another adversarial prompt if that one's objective is lower; that prompt is a candidate either way."""
        better = self.last is None or score < self.last
        new = replace(self, attacked=attacked, last=score) if better else self
        return replace(new, candidates=tuple(dict.fromkeys([*self.candidates, attacked])))


@dataclass
class Attack(ABC):
    """A method that searches adversarial prompts; a subclass adds its settings.

    Attributes:
        name: the name in the config group `attack`.
        prompts: the largest number of measured forget prompts to attack; null attacks all.
        per_prompt: images of each attacked prompt, each with its own seed; the control has the same seeds.
        seed: the seed of the attack's randomness; each prompt has its own generator.
    """

    name: str = ""
    prompts: int | None = None
    per_prompt: int = 2
    seed: int = 0

    needs_images: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    shares_batch: ClassVar[bool] = False
    """What is learned depends on the whole of `batch`: it is not halved where memory is short."""
    sides: ClassVar[tuple[str, str, str]] = ("original", "no attack", "attacked")
    """The names of the sides that are compared: two controls, then the attack."""

    def __post_init__(self) -> None:
        at_least(self, 1, "per_prompt")
        if self.prompts is not None:
            at_least(self, 1, "prompts")

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """Why the attack cannot run on this model; None if it can."""
        if self.needs_tokens and "one_encoder" not in model.capabilities:
            return f"attack={self.name}: requires {CAPABILITIES['one_encoder']}, and {type(model).__name__} has none"
        return None

    def judges_candidates(self) -> bool:
        """Whether the detector also judges all candidates of each attempt, in a column of its own; by default not."""
        return False

    def training_prompts(self) -> int:
        """The number of the concept's prompts that the attack trains on, in turn where there are fewer; by default none."""
        return 0

    @abstractmethod
    def find(self, target: AttackTarget) -> list[Attempt]:
        """Attack every prompt of the target; changes none of its weights."""

    def generators(self, prompts: Sequence[str]) -> list[torch.Generator]:
        """A generator for each prompt, so that a prompt's result depends on the other prompts only by rounding."""
        return [torch.Generator().manual_seed(image_seed(self.seed, Prompt(prompt), 0)) for prompt in prompts]
