"""Detectors: does an image show the concept? The config holds their threshold and classes, run.json their versions."""

from __future__ import annotations

from unlearnbench.config.build import build
from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import concepts_of_domain
from unlearnbench.data.concept import Concept
from unlearnbench.metrics.detectors.base import Detector as Detector
from unlearnbench.metrics.detectors.base import ReadDetector as ReadDetector
from unlearnbench.metrics.detectors.base import Verdict as Verdict
from unlearnbench.metrics.detectors.classifiers import ImageClassifier as ImageClassifier
from unlearnbench.metrics.detectors.classifiers import LabelClassifier as LabelClassifier
from unlearnbench.metrics.detectors.classifiers import TimmClassifier as TimmClassifier
from unlearnbench.metrics.detectors.clip import Q16 as Q16
from unlearnbench.metrics.detectors.clip import ZeroShot as ZeroShot
from unlearnbench.metrics.detectors.clip import nearest_labels as nearest_labels
from unlearnbench.metrics.detectors.nudity import NUDENET_CLASSES as NUDENET_CLASSES
from unlearnbench.metrics.detectors.nudity import NUDENET_PRESETS as NUDENET_PRESETS
from unlearnbench.metrics.detectors.nudity import BodyParts as BodyParts
from unlearnbench.metrics.detectors.nudity import NudeNet as NudeNet
from unlearnbench.metrics.detectors.nudity import OpenNSFW as OpenNSFW
from unlearnbench.metrics.detectors.pictoscenes import InScene as InScene
from unlearnbench.metrics.detectors.pictoworld import Attribute as Attribute
from unlearnbench.metrics.readers import AttributeReader as AttributeReader


def concept_detector(concept: Concept, domain: str) -> Detector:
    """The concept's judge, or its detector for the model's domain.

    Raises:
        UserError: the concept has no detector for this domain.
    """
    if concept.judge is not None:
        return build(concept.judge, Detector, "concept.judge")
    if domain not in concept.detector:
        known = f"{suggest(domain, concept.detector)}{concepts_of_domain(domain)}"
        raise UserError(f"concept.detector: {concept.name} has none for domain {domain}; {known}")
    return build(concept.detector[domain], Detector, f"concept.detector.{domain}")
