"""Stable Diffusion 1 and 2, and all models of their architecture: one text encoder, a UNet, noise or velocity prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from unlearnbench.models.base import Conditioning, ImageShape, fresh_scheduler
from unlearnbench.models.checkpoint_parts import Configs
from unlearnbench.models.diffusers_model import DiffusersModel


@dataclass
class StableDiffusion(DiffusersModel):
    """A StableDiffusionPipeline; see `TextToImage` for the settings."""

    def load_overrides(self) -> dict[str, Any]:
        """The safety checker is not loaded."""
        return {"safety_checker": None, "requires_safety_checker": False}

    def unsupported_reason(self, configs: Configs) -> str | None:
        """See `DiffusersModel.unsupported_reason`; the model must predict noise or velocity, and read the text encoders."""
        if (problem := super().unsupported_reason(configs)) is not None:
            return problem
        if "sigma_data" in configs.get("scheduler", {}):
            reason = "its scheduler is of EDM, which scales latents and noise in another way"
            return f"model.path={self.path}: {reason}, and is not supported"
        predicts = configs.get("scheduler", {}).get("prediction_type", "epsilon")
        if predicts not in ("epsilon", "v_prediction"):
            return f"model.path={self.path}: prediction type {predicts} is not supported"
        unet = configs.get("unet", {})
        if unet.get("time_cond_proj_dim") is not None:
            reason = "its unet reads the guidance scale, as that of a latent consistency model does"
            return f"model.path={self.path}: {reason}, which is not supported"
        width = unet.get("cross_attention_dim")
        encoders = [configs[part] for part in self.parts if part.startswith("text_encoder") and part in configs]
        written = sum(int(encoder.get("hidden_size", 0)) for encoder in encoders)
        if isinstance(width, int) and written not in (0, width):
            return f"model.path={self.path}: its unet reads text embeddings of width {width}, its text encoder's have {written}"
        return None

    def token_tensor(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (n, length), padded or cut to the encoder's length, on the model's device."""
        return self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids.to(self.device)

    def encode_tokens(self, token_ids: Tensor) -> Tensor:
        """The text encoder's last hidden state (n, tokens, width) of token ids (n, tokens).

        With `clip_skip`, the hidden state of an earlier layer, normalised as the last one is.
        """
        with self.autocast():
            if not self.clip_skip:
                return self.text_encoder(token_ids).last_hidden_state
            hidden_states = self.text_encoder(token_ids, output_hidden_states=True).hidden_states
            return getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm(
                hidden_states[-1 - self.clip_skip]
            )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`prompt_embeds`: the text encoder's last hidden state (n, tokens, width)."""
        return {"prompt_embeds": self.encode_tokens(self.token_tensor(prompts))}

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        with self.autocast():
            embeds = self.in_half(conditioning["prompt_embeds"])
            return self.unet(self.in_half(noisy_latents), timesteps, embeds).sample.float()

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or sqrt(abar_t) noise - sqrt(1 - abar_t) latents if the model predicts velocity."""
        if self.noise_scheduler.config.get("prediction_type", "epsilon") == "v_prediction":
            return self._training_scheduler.get_velocity(latents, noise, timesteps.round().long())
        return noise

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(abar_t) latents + sqrt(1 - abar_t) noise; a sampler's timestep between two of training is rounded."""
        return self._training_scheduler.add_noise(latents, noise, timesteps.round().long())

    @cached_property
    def _training_scheduler(self) -> Any:
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(self.noise_scheduler.config)

    def latent_shape(self, shape: ImageShape | None = None) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        height, width = (side // self.pipeline.vae_scale_factor for side in shape or (self.size, self.size))
        return self.unet.config.in_channels, height, width

    def schedule(self, steps: int, shape: ImageShape | None = None) -> Any:
        """See `DiffusersModel.schedule`."""
        scheduler = fresh_scheduler(self.noise_scheduler)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler
