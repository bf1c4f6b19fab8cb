"""The images of a depth measurement side by side: the original, the unlearned model and the oracle under each probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from unlearnbench.attacks.probe import Probe
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.experiment.attack_inputs import open_attack
from unlearnbench.experiment.attacked import AttackedRun
from unlearnbench.reports.image_grid import evenly_spaced, image_strips
from unlearnbench.results.depth import is_autoencoder

PROMPTS = 2  # of each kind of a probe and concept
Column = tuple[list[tuple[Images, ImageRecord]], str]


def depth_images(
    unlearned: AttackedRun, oracle: AttackedRun | None, probes: Sequence[str], overrides: Sequence[str]
) -> Image.Image | None:
    """A sheet of images of evenly spaced prompts, not selected by their images, under every kind of every probe.

    The first row is the original's image of the prompt, the others are by each model under the probe, from the same noise.
    None if the images were deleted.

    Args:
        unlearned: the run, whose probes have run.
        oracle: the oracle, likewise; None if there is none.
        probes: their names.
        overrides: the settings that they ran with.
    """
    columns: list[Column] = []
    explicit = False
    for probe in probes:
        spec, method = open_attack(unlearned, [f"attack={probe}", *overrides])
        assert isinstance(method, Probe)
        concepts = spec.concept.concepts_by_split("forget").values()
        explicit |= any(concept.explicit for concept in concepts)
        columns += _columns(probe, method, unlearned, oracle, [concept.name for concept in concepts])
    names = ["prompted,\noriginal", "probed,\noriginal", "probed,\nunlearned", *(["probed,\noracle"] if oracle else [])]
    return image_strips(names, columns, explicit) if columns else None


def _columns(
    probe: str, method: Probe, unlearned: AttackedRun, oracle: AttackedRun | None, concepts: Sequence[str]
) -> Iterator[Column]:
    """The columns of one probe: for each concept and kind some prompts."""
    for concept in concepts:
        part = concept if len(concepts) > 1 else ""
        own = unlearned.stem(method) / part
        others = [] if oracle is None else [Images(oracle.stem(method) / part / "attacked")]
        sides = [Images(own / "original-probed"), Images(own / "attacked"), *others]
        by_file = [{record.file: record for record in side} for side in sides]
        prompted = Images(own / "original")
        plain = {(record.prompt, record.seed): record for record in prompted}
        for number, kind in enumerate(method.kinds()):
            if is_autoencoder(probe, kind):
                continue
            of_kind = [record for record in sides[0] if record.file.startswith(f"kind-{number}/")]
            there = [record for record in of_kind if all((side.folder / record.file).is_file() for side in sides)]
            first = {record.prompt: record for record in reversed(there) if (own / "original").is_dir()}
            for record in evenly_spaced([*reversed(first.values())], PROMPTS):
                probed = [(side, files[record.file]) for side, files in zip(sides, by_file, strict=True)]
                caption = f"{', '.join(filter(None, [probe, kind]))}: {record.prompt}"
                yield [(prompted, plain[record.prompt, record.seed]), *probed], caption
