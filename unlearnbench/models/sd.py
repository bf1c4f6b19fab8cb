"""Stable Diffusion 1 and 2, and every model of their shape: one text encoder, a UNet, noise or velocity prediction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.config import UserError
from unlearnbench.models.base import DTYPES, Text, TextToImage, fresh
from unlearnbench.models.erasers import erasers


@dataclass
class StableDiffusion(TextToImage):
    """A StableDiffusionPipeline, from the hub or from a folder; see `TextToImage` for the settings."""

    def folder(self) -> Path | None:
        """The local folder, or None where the path is a hub id."""
        path = Path(self.path).expanduser()
        return path if path.exists() or self.path.startswith((".", "/", "~")) else None

    def missing(self) -> str | None:
        """See `TextToImage.missing`."""
        folder = self.folder()
        if folder is None:
            from huggingface_hub import try_to_load_from_cache
            from huggingface_hub.constants import HF_HUB_OFFLINE

            cached = try_to_load_from_cache(self.path, "model_index.json", revision=self.revision)
            if HF_HUB_OFFLINE and not isinstance(cached, str):
                return (
                    f"model {self.path} is not in the hub's cache, HF_HUB_OFFLINE is set; unset it, or set model.path to a folder"
                )
            return None
        if not folder.is_dir():
            return f"model.path={self.path}: no such folder"
        if not (folder / "model_index.json").is_file():
            return f"model.path={self.path}: no model_index.json there; it must be a folder in diffusers' layout"
        for part in self.parts:
            if not list((folder / part).glob("*.safetensors")):
                if list((folder / part).glob("*.bin")):
                    return (
                        f"model.path={self.path}: {part} holds only a pickle (.bin), which is not opened; convert it once with "
                        "pipe.save_pretrained(folder, safe_serialization=True)"
                    )
                return f"model.path={self.path}: no safetensors file in {part}/"
        return None

    def load(self, device: torch.device) -> None:
        """See `TextToImage.load`."""
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # its new name is newer than 0.35
                pipeline = StableDiffusionPipeline.from_pretrained(
                    str(self.folder() or self.path), revision=self.revision, torch_dtype=DTYPES[self.dtype], use_safetensors=True,
                    safety_checker=None, requires_safety_checker=False,
                )  # fmt: skip
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"model.path={self.path}: cannot be loaded: {reason}") from error
        self.device = device
        self.pipeline = pipeline
        self.unet = pipeline.unet.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.vae = pipeline.vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.scheduler = pipeline.scheduler
        if self.scheduler.config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
            raise UserError(f"model.path={self.path}: prediction type {self.scheduler.config.prediction_type} is not supported")

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, padded or cut to the encoder's length: (n, length)."""
        return self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids.to(self.device)

    def states(self, tokens: Tensor) -> Tensor:
        """The text encoder's last hidden state, (n, tokens, width), of token ids (n, tokens)."""
        with self.autocast():
            return self.text_encoder(tokens).last_hidden_state

    def encode(self, prompts: Sequence[str]) -> Text:
        """The states of the prompts' tokens, and what steering adds to them."""
        text = {"states": self.states(self.tokens(prompts))}
        return text if self.steering is None else self.steering.encoded(self, prompts, text)

    def predict(self, noisy: Tensor, times: Tensor, text: Text) -> Tensor:
        """See `TextToImage.predict`."""
        with self.autocast():
            return self.unet(noisy, times, text["states"]).sample.float()

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noise, or the velocity where the model predicts that."""
        if self.scheduler.config.get("prediction_type", "epsilon") == "v_prediction":
            return self._training_scheduler().get_velocity(clean, noise, times)
        return noise

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """sqrt(abar_t) clean + sqrt(1 - abar_t) noise."""
        return self._training_scheduler().add_noise(clean, noise, times)

    def _training_scheduler(self):  # noqa: ANN202
        from diffusers import DDPMScheduler

        if not hasattr(self, "_ddpm"):
            self._ddpm = DDPMScheduler.from_config(self.scheduler.config)
        return self._ddpm

    def latent_shape(self) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        side = self.size // self.pipeline.vae_scale_factor
        return self.unet.config.in_channels, side, side

    @torch.no_grad()
    def denoise(
        self, text: Text, empty: Text, noise: Sequence[torch.Generator], steps: int, guidance: float, stop_at: int | None = None
    ) -> Tensor:
        """See `TextToImage.denoise`; conditional and unconditional halves go through the UNet as one batch."""
        scheduler = fresh(self.scheduler)
        scheduler.set_timesteps(steps, device=self.device)
        latents = torch.stack([torch.randn(self.latent_shape(), generator=g) for g in noise]).to(self.device)
        latents = latents * scheduler.init_noise_sigma
        states = text["states"]
        if guidance > 1:
            states = torch.cat([empty["states"].expand_as(states), states])
        steered = self.steering.start(self, text, empty, steps, guidance) if self.steering is not None else None
        for step, time in enumerate(scheduler.timesteps[:stop_at]):
            seen = scheduler.scale_model_input(latents, time)
            with self.autocast():
                if steered is not None:
                    predicted = steered(step, seen, time)
                elif guidance > 1:
                    without, told = self.unet(torch.cat([seen, seen]), time, states).sample.float().chunk(2)
                    predicted = without + guidance * (told - without)
                else:
                    predicted = self.unet(seen, time, states).sample.float()
            latents = scheduler.step(predicted, time, latents, generator=list(noise)).prev_sample
        return latents

    def time_of(self, step: int, steps: int) -> Tensor:
        """See `TextToImage.time_of`."""
        scheduler = fresh(self.scheduler)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler.timesteps[step]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `TextToImage.decode`."""
        with self.autocast():
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """See `TextToImage.encode_images`."""
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with self.autocast():
            return self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean.float() * self.vae.config.scaling_factor

    def save_pipeline(self, folder: Path) -> None:
        """See `TextToImage.save_pipeline`.

        Raises:
            UserError: it is steered, or has erasers, which diffusers would silently leave out when it loads the folder.
        """
        if self.steering is not None:
            raise UserError("a plain pipeline cannot be steered while it samples; set save_pipeline=false")
        if erasers(self.modules()):
            raise UserError("a plain pipeline has no place for erasers; set save_pipeline=false (weights.safetensors holds them)")
        self.pipeline.save_pretrained(folder, safe_serialization=True)
