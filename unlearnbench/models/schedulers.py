"""The schedulers that `model.scheduler` names: a model's own noise schedule, sampled in another way."""

from __future__ import annotations

import inspect
from typing import Any

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}


def sampling_scheduler(own: Any, name: str | None) -> Any:
    """The scheduler of this name with the betas and the prediction type of a model's own, as diffusers' `from_config` makes it.

    Where the own scheduler has the default spacing of timesteps of its class, the new one has that of its own class, as in the
    papers' scripts and also after the pipeline was saved again, which writes defaults out. DDIM does not clip its prediction
    of the clean latents, which only pixels would need.

    Args:
        own: the checkpoint's scheduler.
        name: one of `SCHEDULERS`; None keeps the own.
    """
    if name is None:
        return own
    import diffusers

    new = getattr(diffusers, SCHEDULERS[name])
    settings: dict[str, Any] = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}.get(name, {})
    if own.config.get("timestep_spacing") == _default_spacing(type(own)):
        settings["timestep_spacing"] = _default_spacing(new)
    return new.from_config(own.config, **settings)


def _default_spacing(scheduler: type) -> str | None:
    parameter = inspect.signature(scheduler.__init__).parameters.get("timestep_spacing")  # type: ignore[misc]
    return parameter.default if parameter else None
