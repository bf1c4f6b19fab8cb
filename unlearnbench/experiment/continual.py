"""The start of continual unlearning: the original's weights, to which later concepts are bound, and the merging of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.continual import Constraint, ties
from unlearnbench.data.concept_group import ConceptGroup
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import select_parameters
from unlearnbench.storage.tensors import read_tensors, write_tensors


@dataclass
class ContinualStart:
    """The original's weights, in the memory of the CPU, and what the group of concepts asks of them.

    Attributes:
        group: the concepts.
        weights: the original's weights, by name: those that train, or with `merge` all but the autoencoder's.
        folder: the run's folder, which gets the weights of each concept that was unlearned alone.
    """

    group: ConceptGroup
    weights: dict[str, Tensor]
    folder: Path

    @classmethod
    def of(cls, spec: RunSpec, model: TextToImage, folder: Path) -> ContinualStart | None:
        """The start of this run, before any concept is unlearned; None if its concepts do not ask for it."""
        group = spec.concept
        if not isinstance(group, ConceptGroup) or not group.binds_to_start:
            return None
        chosen = dict(model.named_parameters()) if group.merge else select_parameters(model, spec.algo.selection)
        names = [name for name in chosen if not name.startswith("vae.")]
        return cls(group, {name: chosen[name].detach().to("cpu", copy=True) for name in names}, folder)

    def constraint(self) -> Constraint | None:
        """What the steps of the next concept obey; None if nothing."""
        bound = self.group.l2_to_start > 0 or self.group.selective < 1
        return Constraint(self.weights, self.group.l2_to_start, self.group.selective) if bound else None

    def restore(self, model: TextToImage) -> None:
        """Before a concept: with `merge` make the model the original again, so that each concept is unlearned alone."""
        if self.group.merge:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in self.weights:
                        parameter.copy_(self.weights[name])

    def merge(self, model: TextToImage, names: Sequence[str], number: int) -> list[str]:
        """After a concept: with `merge` save its weights, and make the model the merger of all concepts so far.

        Args:
            model: the model that has unlearned this concept alone.
            names: the parameters that changed.
            number: of the concept, from 0.

        Returns:
            The parameters that differ from the original.
        """
        if not self.group.merge:
            return [*names]
        parameters = dict(model.named_parameters())
        write_tensors(self._path(number), {name: parameters[name] for name in names}, {})
        alone = [read_tensors(self._path(i))[0] for i in range(number + 1)]
        vectors = [{name: value.cpu().float() - self.weights[name].float() for name, value in each.items()} for each in alone]
        merged = ties(vectors, self.group.density)
        self.restore(model)
        with torch.no_grad():
            for name, vector in merged.items():
                parameters[name].add_(vector.to(parameters[name]), alpha=self.group.scale)
        return list(merged)

    def _path(self, number: int) -> Path:
        return self.folder / "alone" / f"{number + 1}.safetensors"


def continual_problem(spec: RunSpec) -> str | None:
    """Why the method cannot be bound to the start as the concepts ask, with the repair; None if it can."""
    group, algo = spec.concept, spec.algo
    if not isinstance(group, ConceptGroup) or not group.binds_to_start:
        return None
    asked = "concept.merge" if group.merge else "concept.l2_to_start" if group.l2_to_start > 0 else "concept.selective"
    if algo.adds_parameters or not algo.saves_as_pipeline:
        return f"{asked}: algo={algo.name} trains parameters of its own, which the original does not have; leave it out"
    if group.l2_to_start > 0 or group.selective < 1:
        if type(algo).update is not Unlearner.update:
            return f"{asked}: algo={algo.name} trains in no steps; leave it out, or set concept.merge=ties"
        if algo.trains_adapters:
            kind = f"algo.train={algo.train}" if algo.lora is not None else f"algo={algo.name}"
            return f"{asked}: {kind} trains adapters; {_without_adapters(algo)}, or set concept.merge=ties alone"
    if spec.training.processes > 1:
        return f"{asked}: trains in one process; set training.processes=1"
    return None


def _without_adapters(algo: Unlearner) -> str:
    """The repair of a method that trains adapters."""
    if algo.lora is not None:
        return "set algo.train to layers of the model, such as xattn"
    zero: dict[str, Any] = {name: 0 for name in ("whiten", "rank") if getattr(algo, name, 0) > 0}
    if zero and not replace(algo, **zero).trains_adapters:
        return "set " + " ".join(f"algo.{name}=0" for name in zero)
    return "take another algorithm"
