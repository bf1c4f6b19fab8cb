"""The steps of a run in advance, for its progress line: names, order, and how much work each is."""

from __future__ import annotations

from unlearnbench.console.run_plan import PlannedStep
from unlearnbench.data.concept import Concept
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import bar_name, training_prompts

BACKWARD = 3  # a forward and a backward pass take about as long as three forward passes


def run_steps(spec: RunSpec) -> list[PlannedStep]:
    """The steps of a run; of its work, only proportions count, in passes of the denoiser for one image."""
    images = len(spec.sample.limit(spec.prompts())) * spec.sample.per_prompt
    passes, stages = _passes_per_image(spec), spec.concept.unlearning_stages()
    steps = [PlannedStep("load model"), PlannedStep("sample original", images * passes)]
    steps += dict.fromkeys(step for stage in stages for step in _training_sets(spec, stage, passes))
    for number, stage in enumerate(stages, 1):
        concepts = len(stage.concepts_by_split("forget"))
        work = spec.algo.steps * concepts * spec.algo.batch * 2 * BACKWARD
        steps.append(PlannedStep("unlearn", work, f"unlearn {stage.name}" if len(stages) > 1 else ""))
        if number < len(stages):
            steps.append(PlannedStep(f"sample after {stage.name}", images * passes))
    steps += [PlannedStep("sample unlearned", images * passes), PlannedStep("measure", images * len(spec.metrics))]
    return steps


def _passes_per_image(spec: RunSpec) -> int:
    return spec.sample.steps * (2 if spec.sample.guidance > 1 else 1)


def _training_sets(spec: RunSpec, stage: Concept, passes: int) -> list[PlannedStep]:
    """The images that a method trains on, as far as the original model generates them."""
    forget, retain = (training_prompts(spec, side, stage) for side in ("forget", "retain"))
    sides = {"forget": forget, "anchor": forget, "retain": retain}
    needed = {"forget": spec.algo.needs_images, "anchor": spec.algo.needs_anchor_images, "retain": spec.algo.needs_images}
    return [
        PlannedStep(bar_name(spec, side, stage), len(texts) * spec.training.per_prompt * passes)
        for side, (texts, files) in sides.items()
        if needed[side] and texts and (not files or side == "anchor")
    ]
