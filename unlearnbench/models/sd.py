"""Stable Diffusion 1 and 2, and every model of their shape: one text encoder, a UNet, noise or velocity prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.models.base import Conditioning, fresh_scheduler
from unlearnbench.models.diffusers_model import DiffusersModel


@dataclass
class StableDiffusion(DiffusersModel):
    """A StableDiffusionPipeline, from the hub, a folder or a file; see `TextToImage` for the settings."""

    def load_overrides(self) -> dict[str, Any]:
        """The safety checker."""
        return {"safety_checker": None, "requires_safety_checker": False}

    def accept(self) -> None:
        """See `Pipeline.accept`; it must predict noise or velocity."""
        super().accept()
        if self.scheduler.config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
            raise UserError(f"model.path={self.path}: prediction type {self.scheduler.config.prediction_type} is not supported")

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, padded or cut to the encoder's length: (n, length)."""
        return self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids.to(self.device)

    def states(self, tokens: Tensor) -> Tensor:
        """The text encoder's last hidden state, (n, tokens, width), of token ids (n, tokens)."""
        with self.autocast():
            return self.text_encoder(tokens).last_hidden_state

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The hidden states of the prompts' tokens."""
        return {"prompt_embeds": self.states(self.tokens(prompts))}

    def predict(self, noisy: Tensor, times: Tensor, text: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        with self.autocast():
            return self.unet(noisy, times, text["prompt_embeds"]).sample.float()

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noise, or the velocity where the model predicts that."""
        if self.scheduler.config.get("prediction_type", "epsilon") == "v_prediction":
            return self._training_scheduler().get_velocity(clean, noise, times)
        return noise

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """sqrt(abar_t) clean + sqrt(1 - abar_t) noise."""
        return self._training_scheduler().add_noise(clean, noise, times)

    def _training_scheduler(self) -> Any:
        from diffusers import DDPMScheduler

        if not hasattr(self, "_ddpm"):
            self._ddpm = DDPMScheduler.from_config(self.scheduler.config)
        return self._ddpm

    def latent_shape(self) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        side = self.size // self.pipeline.vae_scale_factor
        return self.unet.config.in_channels, side, side

    def schedule(self, steps: int) -> Any:
        """See `Pipeline.schedule`."""
        scheduler = fresh_scheduler(self.scheduler)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler
