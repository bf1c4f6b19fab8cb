"""Noise: does noise that is added while sampling lead the unlearned model back to the concept?"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from unlearnbench.attacks.probe import Probe, ProbedBatch
from unlearnbench.models.base import Predictor, TextToImage
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.noising import coefficients, split_prediction
from unlearnbench.models.schedulers import SCHEDULERS

PREDICT_TWICE = ("PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")


@dataclass
class Noise(Probe):
    """Sample the prompts with more noise at each step than the model's own sampler adds.

    x_t-1 = a' x_0 + |s'^2 - q^2|^(1/2) e + q z, z fresh noise of the image's seed, q = eta (s' / s) (s^2 - (a s' / a')^2)^(1/2),
    for x_t = a x_0 + s e and x_t-1 = a' x_0 + s' e: DDIM's eta, here above 1 too. After "When Are Concepts Erased From Diffusion
    Models?" (NeurIPS 2025, arXiv 2505.17013), whose code has eta 1 to 1.85, the absolute value under the root and a second
    factor on the noise (1 to 1.04), and takes the best of 24 images by CLIP; here every image counts. The sampler is given the
    prediction that leads its own step to x_t-1, which is exact for DDIM and Euler and approximate for samplers of several steps.
    Those that predict twice at a timestep, such as PNDM, are refused. The last step adds no noise.

    Attributes:
        etas: the factors on the noise; each is a row of the table.
        prompt: own (the concept's prompt) or empty.
    """

    etas: list[float] = field(default_factory=lambda: [1.0, 1.4, 1.85])
    prompt: str = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.etas:
            raise ValueError("etas: give at least one number")
        for eta in self.etas:
            if eta < 0:
                raise ValueError(f"etas: {eta} is below 0")
        if self.prompt not in ("empty", "own"):
            raise ValueError(f"prompt: {self.prompt!r}; known: empty, own")

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """See `Attack.unavailable_reason`; the sampler must predict once at each timestep."""
        if reason := super().unavailable_reason(model):
            return reason
        own = model.configs().get("scheduler", {}).get("_class_name") if isinstance(model, DiffusersModel) else None
        scheduler = own if model.scheduler is None else SCHEDULERS[model.scheduler]
        if scheduler not in PREDICT_TWICE:
            return None
        return f"attack={self.name}: {scheduler} predicts twice at a timestep; repeat the run with model.scheduler=ddim"

    def kinds(self) -> list[str]:
        """See `Probe.kinds`."""
        return [f"{eta:g}" for eta in self.etas]

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        own = self.prompt == "own"
        predict = batch.predictor(batch.prompts, steps, scale) if own else batch.empty_predictor(steps, scale)
        model, eta, noise = batch.model, float(batch.kind), batch.noise()
        next(noise)  # which the image starts from

        def noisy(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            prediction = predict(step, latents, timestep)
            if step + 1 == steps:
                return prediction
            now, then = timestep.expand(len(latents)), model.timestep_after(step + 1, steps).expand(len(latents))
            (a, s), (a_then, s_then) = coefficients(model, latents, now), coefficients(model, latents, then)
            clean, residual = split_prediction(model, latents, prediction, now)
            spread = eta * s_then / s * (s.square() - (a * s_then / a_then).square()).clamp(min=0).sqrt()
            drift = (s_then.square() - spread.square()).abs().sqrt()
            goal = a_then * clean + drift * residual + spread * next(noise)
            area = a * s_then - s * a_then
            return model.target((s_then * latents - s * goal) / area, (a * goal - a_then * latents) / area, now)

        return noisy
