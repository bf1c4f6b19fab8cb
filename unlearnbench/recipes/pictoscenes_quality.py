"""The quality of Pictoscenes' detector, model and CLIP, on held-out scenes and captions, as the detector reads images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from unlearnbench.console import progress_bar
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.pictoscenes.captions import caption
from unlearnbench.pictoscenes.detector import OF_IMAGE, OF_SUBJECT, Detection, Detector, load_detector
from unlearnbench.pictoscenes.pictograms import SUBJECTS
from unlearnbench.pictoscenes.prompts import Named, assigned, has, in_place, parse
from unlearnbench.pictoscenes.render import Box, render
from unlearnbench.pictoscenes.scenes import Scene, scene
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.recipes.pictoscenes_detector import SCENES
from unlearnbench.recipes.quality import Score, clip_scores, embedded_model
from unlearnbench.sampling import generate
from unlearnbench.worlds.pictoscenes import WORLD

Answers = dict[str, list[bool]]
BARS = {"subject": 0.90, "place": 0.80}
DETECTOR_BARS = {"object": 0.97}
RENDERS = 2_000


def measure_quality(count: int = 1000, seed: int = 0) -> list[Score]:
    """Measure the pipeline, the detector and the small CLIP.

    Args:
        count: held-out captions, one image each.
        seed: of sampling.
    """
    model, detector = embedded_model(WORLD).load(torch.device("cpu")), load_detector()
    samples = sample_quality(model, detector, captions(count), seed=seed)
    world = [scene(index) for index in range(SCENES, SCENES + RENDERS)]
    renders = [render(one, np.random.default_rng([12, SCENES + number])) for number, one in enumerate(world)]
    images = torch.from_numpy(np.stack([image for image, _ in renders]))
    judged = detection_quality(detector, world, images, [boxes for _, boxes in renders])
    texts = [caption(one, np.random.default_rng([13, SCENES + number])) for number, one in enumerate(world)]
    return [
        *(Score("pipeline, samples", name, *counted, BARS.get(name)) for name, counted in samples.items()),
        *(Score("detector, renders", name, *counted, DETECTOR_BARS.get(name)) for name, counted in judged.items()),
        *clip_scores(WORLD, parse, images, texts),
    ]


def detection_quality(
    model: Detector, world: Sequence[Scene], images: Tensor, boxes: Sequence[Sequence[Box]]
) -> dict[str, tuple[int, int]]:
    """How often the detector is right: (right, of) for each attribute, for places, and for whole objects.

    An object is right if a subject is detected within six pixels of its centre with the right subject, colour and pattern.

    Args:
        model: the detector.
        world: the scenes.
        images: their renders, uint8 (n, 64, 64, 3).
        boxes: where each subject of a scene is.
    """
    scores: Answers = {name: [] for name in (*OF_SUBJECT, "place", "object", "count", *OF_IMAGE)}
    read = [one for batch in images.split(100) for one in model.read(to_unit(batch))]
    for truth, places, (whole, detections) in zip(world, boxes, read, strict=True):
        scores["count"].append(len(detections) == len(truth.objects))
        for name in OF_IMAGE:
            scores[name].append(whole[name] == getattr(truth, name))
        for obj, box in zip(truth.objects, places, strict=True):
            nearest = _nearest(detections, box)
            scores["place"].append(nearest is not None)
            visible = [n for n in OF_SUBJECT if n not in obj.hidden]
            right = {n: nearest is not None and nearest.attributes[n] == getattr(obj, n) for n in visible}
            for name, value in right.items():
                scores[name].append(value)
            scores["object"].append(all(value for name, value in right.items() if name != "size"))
    return {name: (sum(values), len(values)) for name, values in scores.items()}


def _nearest(detections: Sequence[Detection], box: Box) -> Detection | None:
    distances = [(np.hypot(one.box.x - box.x, one.box.y - box.y), number) for number, one in enumerate(detections)]
    distance, number = min(distances, default=(np.inf, -1))
    return detections[number] if distance <= 6 else None


def captions(count: int) -> list[str]:
    """Captions of scenes outside the training set; each names every attribute."""
    return [caption(scene(i), np.random.default_rng([13, i]), keep=1.0) for i in range(SCENES, SCENES + count)]


def sample_quality(
    model: StableDiffusion, detector: Detector, texts: Sequence[str], batch: int = 50, seed: int = 0
) -> dict[str, tuple[int, int]]:
    """How often a sample shows what its caption names: (right, of) for each part of a caption.

    subject: a subject of the caption is there. color, pattern: of a subject that is there. count: as many subjects as named, and
    no more. place: the subjects stand in the named order, or the single one is nearest to its named position. binding: in a
    scene of different subjects, each is there in its own colour and pattern. background, style: of the image. Then all of these
    together, by the number of subjects in the caption, and each subject alone.
    """
    names = ["subject", "color", "pattern", "count", "place", "binding", *OF_IMAGE]
    answers: Answers = {name: [] for name in [*names, *map(_all_of, (1, 2, 3)), *map(_only, SUBJECTS)]}
    with progress_bar("sample held-out captions", len(texts)) as shown:
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            seeds = range(seed + start, seed + start + len(part))
            images = generate(model, part, seeds, model.steps, model.guidance)
            for text, (whole, detections) in zip(part, detector.read(to_unit(torch.as_tensor(images))), strict=True):
                _judge(parse(text), whole, detections, answers)
                shown.advance()
    return {name: (sum(values), len(values)) for name, values in answers.items() if values}


def _all_of(count: int) -> str:
    return f"all that the caption names, {count} subject{'s' * (count > 1)}"


def _only(subject: str) -> str:
    return f"subject: {subject}"


def _judge(named: Named, whole: Mapping[str, str], detections: Sequence[Detection], answers: Answers) -> None:
    """Add what one image shows of what its caption names."""
    objects, shown = named.objects, assigned(named.objects, detections)
    for obj, one in zip(objects, shown, strict=True):
        answers["subject"].append(one is not None)
        answers[_only(obj["subject"])].append(one is not None)
        if one is not None:
            for name in obj.keys() & {"color", "pattern"}:
                answers[name].append(one.attributes[name] == obj[name])
    of_image = {
        "count": Counter(one.attributes["subject"] for one in detections) == Counter(obj["subject"] for obj in objects),
        **{name: whole[name] == value for name, value in named.whole.items()},
    }
    if named.order or named.position:
        of_image["place"] = in_place(named, shown)
    bound = all(has(one, obj, "color", "pattern") for obj, one in zip(objects, shown, strict=True))
    if any(obj != objects[0] for obj in objects):
        of_image["binding"] = bound
    for name, right in of_image.items():
        answers[name].append(right)
    answers[_all_of(len(objects))].append(bound and all(of_image.values()))
