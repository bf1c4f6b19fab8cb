"""The settings of one run as checked objects, built from a composed configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.build import build, checked, settings_of
from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import cache_folder, concepts_of_domain
from unlearnbench.config.ranges import at_least
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompts import FORGET_SPLITS, Prompt, distinct_prompts
from unlearnbench.data.protocol import Protocol
from unlearnbench.data.retain_set import Retain
from unlearnbench.data.training_source import TrainingSource
from unlearnbench.metrics.base import EvaluationSetting, Metric
from unlearnbench.models.base import TextToImage
from unlearnbench.sampling import Sampling
from unlearnbench.storage.units import parse_size


@dataclass
class RunOptions:
    """The settings of config.yaml that belong to no config group."""

    seed: int = 0
    device: str = "auto"
    cache: str = "outputs/cache"
    cache_limit: str | None = None
    save_pipeline: bool = False
    tracker: str | None = None
    resume: bool = False
    fetch: str = "auto"
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        if self.fetch not in ("auto", "never"):
            raise ValueError(f"fetch: {suggest(self.fetch, ('auto', 'never'))}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: {self.seed} is not between -2^63 and 2^63")
        at_least(self, 0, "checkpoint_every")
        if self.cache_limit is not None:
            parse_size(self.cache_limit)


def _protocol(node: Any) -> Protocol | None:
    return checked(Protocol, settings_of(node, "protocol"), "protocol.") if node else None


@dataclass
class RunSpec:
    """The parts of one run, built and checked; no model is loaded yet."""

    model: TextToImage
    concept: Concept
    retain: Retain
    algo: Unlearner
    metrics: dict[str, Metric]
    sample: Sampling
    training: TrainingSource
    seed: int
    device: str
    cache: Path
    cache_limit: str | None
    save_pipeline: bool
    tracker: str | None
    resume: bool
    fetch: str
    checkpoint_every: float
    protocol: Protocol | None
    config: dict[str, Any]

    @classmethod
    def of(cls, config: DictConfig) -> RunSpec:
        """Build every part of a composed configuration.

        Raises:
            UserError: a name, type or value is wrong; the text says where.
        """
        try:
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            if match := re.search(r"anchors\.(.+)' not found", str(error)):
                concept = OmegaConf.select(config, str(error.full_key).rpartition(".")[0])
                known = suggest(match.group(1), concept.anchors) + concepts_of_domain(match.group(1))
                raise UserError(f"concept {concept.name} has no anchors for the domain {match.group(1)}; {known}") from error
            raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
        assert isinstance(plain, dict)
        parts = {field.name for field in fields(cls)} - {"config"}
        for key in map(str, plain):
            if key not in parts:
                raise UserError(f"{key}: no such setting; {suggest(key, parts)}")
        options = checked(RunOptions, {field.name: plain[field.name] for field in fields(RunOptions) if field.name in plain}, "")
        metrics = settings_of(plain.get("metrics"), "metrics")
        return cls(
            model=build(plain.get("model"), TextToImage, "model"),
            concept=build(plain.get("concept"), Concept, "concept"),
            retain=build(plain.get("retain"), Retain, "retain"),
            algo=build(plain.get("algo"), Unlearner, "algo"),
            metrics={name: build(node, Metric, f"metrics.{name}") for name, node in metrics.items()},
            sample=build(plain.get("sample"), Sampling, "sample"),
            training=build(plain.get("training"), TrainingSource, "training"),
            seed=options.seed,
            device=options.device,
            cache=cache_folder(options.cache),
            cache_limit=options.cache_limit,
            save_pipeline=options.save_pipeline,
            tracker=options.tracker,
            resume=options.resume,
            fetch=options.fetch,
            checkpoint_every=options.checkpoint_every,
            protocol=_protocol(plain.get("protocol")),
            config={str(key): value for key, value in plain.items() if key not in ("resume", "fetch")},
        )

    @property
    def evaluation_setting(self) -> EvaluationSetting:
        """The settings that metrics depend on."""
        return EvaluationSetting(self.model.domain, self.model.size, self.concept, self.retain, self.cache)

    def prompts(self) -> list[Prompt]:
        """The prompts that are measured, each once: those of the concept, and the retain splits."""
        return distinct_prompts(self.measured_rows())

    def measured_rows(self) -> list[Prompt]:
        """The rows of all prompt lists that are measured; a prompt may stand in several."""
        of_concept = [p for p in self.concept.load() if p.base in FORGET_SPLITS]
        return [p for p in [*of_concept, *self.retain.load(self.concept)] if p.use in ("", "measure")]
