"""What an attack is, what it may know of its victim, and what it hands back."""

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
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class AttackTarget:
    """An unlearned model and what an attack may know of it.

    Attributes:
        model: the unlearned model.
        original: the model as it was; `with victim.original() as model` opens it.
        concept: what was forgotten.
        prompts: the forget prompts under attack, none twice.
        latents: of an image of each prompt by the original, (n, c, h, w); empty where the attack needs none.
        training: forget prompts that are not measured.
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
        prompt: the prompt that was attacked, which is the control.
        attacked: what is asked in its stead.
        kind: the row of the table in which it counts; "" where the attack has one row.
        first: the attack's objective at its start, if it has one; lower is better for the attack.
        last: the objective at its end.
    """

    prompt: str
    attacked: str
    kind: str = ""
    first: float | None = None
    last: float | None = None

    def better(self, attacked: str, score: float) -> Attempt:
        """This attempt, or the same with another prompt where that one's objective is lower."""
        return replace(self, attacked=attacked, last=score) if self.last is None or score < self.last else self


@dataclass
class Attack(ABC):
    """A way to find prompts; a subclass adds its settings.

    Attributes:
        name: as in the config group `attack`.
        prompts: at most so many of the measured forget prompts; null takes all.
        per_prompt: images of each attacked prompt, each with a seed of its own, the same as the control's.
        seed: of the attack's own randomness, from which each prompt has a generator of its own.
    """

    name: str = ""
    prompts: int | None = None
    per_prompt: int = 2
    seed: int = 0

    needs_images: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, 1, "per_prompt")
        if self.prompts is not None:
            at_least(self, 1, "prompts")

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """What keeps it from attacking this model; None if nothing."""
        if self.needs_tokens and "one_encoder" not in model.capabilities:
            return f"attack={self.name} needs one text encoder that is all the denoiser hears; {type(model).__name__} has more"
        return None

    @abstractmethod
    def find(self, victim: AttackTarget) -> list[Attempt]:
        """Attack every prompt of the victim; changes none of its weights."""

    def generators(self, prompts: Sequence[str]) -> list[torch.Generator]:
        """A generator for each prompt, so that what is found does not depend on the other prompts, but for rounding."""
        return [torch.Generator().manual_seed(image_seed(self.seed, Prompt(prompt), 0)) for prompt in prompts]
