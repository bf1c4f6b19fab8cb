"""The images of a probe, by the unlearned model and by the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attempt
from unlearnbench.attacks.probe import Probe, ProbedBatch, ProbeSampling, SourceProbe
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home
from unlearnbench.data.image_reader import image_files, open_image
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.attacked import AttackedModel, AttackJob, columns_of_rows
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.sampling import ImageGenerator, Sampling, SamplingBatch, encode_images, sample
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.tensors import tensor_digest

Sources = dict[tuple[str, int], Tensor]


class ProbeGenerator(ImageGenerator):
    """Generates images by a model under one kind of a probe.

    Args:
        model: the model under the probe.
        guidance: how it is sampled, or None.
        original: the original.
        probe: the probe.
        kind: the kind of its rows.
        sources: the latents of the original's images, by prompt and seed; empty if the probe needs none.
        is_original: whether the model is the original, the probe's control.
    """

    encoded_ahead = 0  # a probe encodes its prompts itself, batch by batch

    def __init__(
        self,
        model: TextToImage,
        guidance: SamplingGuidance | None,
        original: Frozen,
        probe: Probe,
        kind: str,
        sources: Sources,
        is_original: bool,
    ) -> None:
        super().__init__(model, guidance)
        self._is_original = is_original
        self._original, self._probe, self._kind, self._sources = original, probe, kind, sources

    def _latents(self, batch: SamplingBatch, guidance: SamplingGuidance | None) -> Tensor:
        pairs = zip(batch.prompts, batch.seeds, strict=True)
        sources = torch.stack([self._sources[pair] for pair in pairs]) if self._sources else torch.empty(0)
        if self._probe.leaves_sources(self._kind):
            return sources
        probed = ProbedBatch(
            self.model, guidance, self._original, batch.prompts, batch.seeds, sources, self._kind, self._is_original
        )
        return super()._latents(batch, ProbeSampling(self._probe, probed))


def encode_sources(model: TextToImage, images: Images, batch: int) -> Sources:
    """The latents of images, by prompt and seed, on the model's device."""
    records, pixels, sources = list(images), images.pixels(), {}
    for start in range(0, len(records), batch):
        part = records[start : start + batch]
        latents = encode_images(model, pixels[start : start + batch], [record.prompt for record in part])
        sources.update({(record.prompt, record.seed): latent for record, latent in zip(part, latents, strict=True)})
    return sources


def folder_sources(model: TextToImage, folder: Path, pairs: Sequence[tuple[str, int]]) -> Sources:
    """The latents of a folder's images, dealt out in turn to pairs of prompt and seed, on the model's device.

    Raises:
        UserError: the folder has no image.
    """
    files = image_files(folder) if folder.is_dir() else []
    if not files:
        raise UserError(f"attack.images={folder}: no images there; name a folder of images of the concept")
    latents = [
        encode_images(model, torch.from_numpy(open_image(file, model.size))[None], [file.name])[0] for file in files[: len(pairs)]
    ]
    return {pair: latents[i % len(latents)] for i, pair in enumerate(pairs)}


def probe_images(
    side: str,
    generator: ImageGenerator,
    pairs: Sequence[tuple[Attempt, int]],
    images: Images,
    folder: str,
    settings: Sampling,
    columns: Mapping[tuple[str, int], tuple[tuple[str, str], ...]],
    cache: Cache | None = None,
    key: str = "",
) -> None:
    """Generate the image of each attempt and seed of one kind into a folder in that of `images`, and add them to the index.

    Args:
        side: the name of the model.
        generator: generates the images.
        pairs: attempts of one kind, each with a seed.
        images: gets the images.
        folder: the name of the folder in theirs.
        settings: of sampling.
        columns: the other columns of the measured rows, by prompt and seed: a probed prompt has its row's guidance scale.
        cache: stores the images for other runs.
        key: of the model and the probe, for the cache.
    """
    prompts = [
        Prompt(attempt.prompt, "forget", seed=seed, columns=columns.get((attempt.prompt, seed), ())) for attempt, seed in pairs
    ]
    settings = replace(settings.of_seeded_prompts(), row_size=False)
    generated = sample(f"probe {side}", generator, prompts, settings, images.folder / folder, cache, key)
    images.add([replace(record, file=f"{folder}/{record.file}") for record in generated])


def probe_sides(
    spec: RunSpec, method: Probe, attacked: AttackedModel, job: AttackJob, pairs: Sequence[tuple[Attempt, int]]
) -> tuple[Images, Images]:
    """The images of the original and of the unlearned model under a probe, one for each attempt and seed."""
    sources = probe_sources(spec, method, attacked.model, job)
    probed = {side: Images(job.folder / side, []) for side in ("original-probed", "attacked")}
    shared, target = Cache(spec.cache), job.target
    columns = columns_of_rows(spec, method.per_prompt)
    settings = {key: value for key, value in asdict(method).items() if key not in ("prompts", "per_prompt")}
    for number, kind in enumerate(method.kinds()):
        of_kind = [(attempt, seed) for attempt, seed in pairs if attempt.kind == kind]
        original, unlearned = (
            ProbeGenerator(attacked.model, guidance, attacked.original, method, kind, sources, is_original)
            for guidance, is_original in ((None, True), (attacked.guidance, False))
        )
        parts = [
            attacked.fingerprint,
            target.training or target.prompts,
            target.concept.anchor,
            settings,
            kind,
            tensor_digest({f"{prompt} {seed}": x for (prompt, seed), x in sources.items()}),
        ]
        keys = [digest(*parts, weights) for weights in ("", attacked.shared_weights)]
        part, caches = f"kind-{number}", (shared, shared if attacked.shared_weights else None)
        with attacked.original():
            probe_images("original", original, of_kind, probed["original-probed"], part, spec.sample, columns, caches[0], keys[0])
        probe_images("unlearned", unlearned, of_kind, probed["attacked"], part, spec.sample, columns, caches[1], keys[1])
    return probed["original-probed"], probed["attacked"]


def probe_sources(spec: RunSpec, method: Probe, model: TextToImage, job: AttackJob) -> Sources:
    """The latents that a probe starts from, by prompt and seed; empty if it needs none.

    Raises:
        UserError: the folder of images has none, or one cannot be read.
    """
    if not isinstance(method, SourceProbe):
        return {}
    if method.images is None:
        return encode_sources(model, job.original_images, spec.sample.batch)
    return folder_sources(model, Path(at_home(method.images)), [(r.prompt, r.seed) for r in job.original_images])
