"""What is attacked: a run, its model, and the job for each of its concepts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearnbench.algos.examples import Examples
from unlearnbench.attacks.base import Attack, AttackTarget
from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.experiment.provenance import is_same_kind
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.devices import free_gpu
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.vocabulary import token_embedding
from unlearnbench.models.weights import install_saved_adapters, load_weights
from unlearnbench.results.run import Run
from unlearnbench.storage.tensors import read_tensors

PromptsAndSeeds = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class AttackedRun:
    """The run whose model is attacked.

    Attributes:
        run: the run.
        weights: the weights over the original's; by default the run's own.
        suffix: of the names of the files and the folder with the results.
        finished: whether the run has to be finished; a run that measures itself is not yet.
    """

    run: Run
    weights: Path
    suffix: str = ""
    finished: bool = True

    @classmethod
    def of(cls, run: Run) -> AttackedRun:
        """A finished run with its own weights."""
        return cls(run, run.folder / "weights.safetensors")

    def stem(self, method: Attack) -> Path:
        """The path of the results, without the suffixes of files."""
        return self.run.folder / f"attack-{method.name}{self.suffix}"


@dataclass
class AttackJob:
    """The attack on one concept.

    Attributes:
        split: the split of the concept's forget prompts.
        target: the models, and what the attack may know of them.
        seeds: the seeds of each attacked prompt's images.
        folder: gets a folder of images for each side: original, control and attacked.
        original_images: images of the prompts by the original model.
        control_images: images of the same prompts and seeds by the unlearned model.
    """

    split: str
    target: AttackTarget
    seeds: dict[str, list[int]]
    folder: Path
    original_images: Images
    control_images: Images


class AttackedModel(NamedTuple):
    """The model under attack.

    Attributes:
        model: the unlearned model.
        guidance: how it is sampled.
        original: the original's values of what changed.
        fingerprint: the original's.
        controls: the folders of the images that finished probes sampled without a probe, by their prompts and seeds.
        shared_weights: the hash of weights that several runs are compared with, whose images the cache stores; else "".
    """

    model: TextToImage
    guidance: SamplingGuidance | None
    original: Frozen
    fingerprint: str
    controls: dict[PromptsAndSeeds, Path]
    shared_weights: str = ""


def load_attacked_model(settings: TextToImage, weights: Path, device: torch.device, run: Run) -> AttackedModel:
    """Load a run's original model and its saved weights.

    Raises:
        UserError: the original model is another one than in the run.
    """
    free_gpu(device)
    model = settings.load(device)
    fingerprint = model.fingerprint()
    if is_same_kind(run.log["device"], device) and fingerprint != run.log["fingerprint"]:
        raise UserError(f"{run.folder}: model {model.path} has changed since the run; repeat the run")
    saved = read_tensors(weights)[0]
    install_saved_adapters(model, saved)
    changed = {name: parameter for name, parameter in model.named_parameters() if name in saved}
    del saved  # which would stay in memory beside the copy that is loaded below
    for parameter in changed.values():
        parameter.data = parameter.data.float()
    original = Frozen(model, changed)
    return AttackedModel(model, load_weights(model, weights), original, fingerprint, {})


def sampling_guidance(spec: RunSpec, model: TextToImage) -> SamplingGuidance | None:
    """The guidance of a method that changes only sampling, for which a file of weights has no place."""
    nothing = Examples([], [], torch.empty(0))
    return spec.algo.unlearn(model, nothing, nothing, spec.concept, spec.seed).guidance


def columns_of_rows(spec: RunSpec, repeats: int) -> dict[tuple[str, int], tuple[tuple[str, str], ...]]:
    """The other columns of the measured rows, by prompt and seed, if the rows have guidance scales of their own.

    Args:
        spec: the run's settings.
        repeats: the largest number of images of a row.
    """
    rows = [p for p in spec.prompts() if p.columns] if spec.sample.row_guidance else []
    return {(p.text, spec.sample.image_seed(p, repeat)): p.columns for p in rows for repeat in range(repeats)}


def add_learned_tokens(model: Any, learned: dict[str, Tensor]) -> None:
    """Add learned tokens to the tokenizer and the text encoder's embeddings."""
    if learned:
        model.tokenizer.add_tokens(list(learned), special_tokens=True)
        with torch.random.fork_rng():
            model.text_encoder.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        ids = model.tokenizer.convert_tokens_to_ids(list(learned))
        with torch.no_grad():
            token_embedding(model).weight[ids] = torch.stack(list(learned.values())).to(token_embedding(model).weight)
