"""A diffusers pipeline: where its files are, how it is loaded, how it samples, and what its autoencoder makes of a latent."""

from __future__ import annotations

import copy
import inspect
import json
import re
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home, is_hub_id
from unlearnbench.models.adapters.bottleneck import bottleneck_adapters
from unlearnbench.models.adapters.gated_lora import gated_loras
from unlearnbench.models.base import DTYPES, Conditioning, Predictor, SamplingGuidance, TextToImage, stack_conditioning

FITS = {
    "StableDiffusionPipeline": "sd14, sd15 or sd21",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3 or sd35",
    "FluxPipeline": "flux",
}
WEIGHTS = re.compile(r"\w+(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


@dataclass
class DiffusersModel(TextToImage):
    """A pipeline of diffusers, from the hub, a folder or a single file; see `TextToImage` for the settings.

    A family sets `kind`, its class in diffusers; `denoiser`, the part that predicts; `parts`, all that have weights, and of
    these `may_lack`, which a checkpoint may do without; and whether a single file of it is whole or the denoiser alone.
    """

    kind: ClassVar[str] = "StableDiffusionPipeline"
    denoiser: ClassVar[str] = "unet"
    may_lack: ClassVar[tuple[str, ...]] = ()
    file_is_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = at_home(self.path)
        self.config = None if self.config is None else at_home(self.config)
        self.pipeline: Any = None
        self.unet: Any = None
        self.transformer: Any = None
        self.text_encoder: Any = None
        self.text_encoder_2: Any = None
        self.text_encoder_3: Any = None
        self.vae: Any = None

    # --- what a family may say otherwise ----------------------------------------------------------------------------

    @abstractmethod
    def schedule(self, steps: int) -> Any:
        """A scheduler without memory, set to so many sampling steps."""

    def seen(self, scheduler: Any, latents: Tensor, time: Tensor) -> Tensor:
        """The latents of a sampling step, scaled as `predict` takes them."""
        return scheduler.scale_model_input(latents, time)

    def predictor(self, cond: Conditioning, uncond: Conditioning, scale: float) -> Predictor:
        """See `TextToImage.predictor`; both predictions of classifier-free guidance go through the model as one batch."""
        if scale <= 1:
            return lambda step, latents, timestep: self.predict(latents, timestep, cond)
        stacked = stack_conditioning(uncond, cond)

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            pred_uncond, pred_cond = self.predict(torch.cat([latents, latents]), timestep, stacked).chunk(2)
            return pred_uncond + scale * (pred_cond - pred_uncond)

        return predict

    def from_file(self, kind: Any) -> Any:
        """The pipeline of a single file, which holds all of it but its settings and tokenizers."""
        return kind.from_single_file(self.path, config=self.config, torch_dtype=DTYPES[self.dtype])

    # --- files ------------------------------------------------------------------------------------------------------

    def folder(self) -> Path | None:
        """The local folder or file, or None where the path is a hub id."""
        path = Path(self.path)
        return path if path.exists() or self.path.startswith((".", "/")) else None

    def is_file(self) -> bool:
        """Is the checkpoint a single file?"""
        folder = self.folder()
        return folder is not None and folder.is_file()

    def local(self) -> Path | None:
        """The folder in diffusers' layout that is on this machine, the hub's cache included; None if there is none."""
        from huggingface_hub import try_to_load_from_cache

        folder = self.folder()
        if folder is None and is_hub_id(self.path):
            cached = try_to_load_from_cache(self.path, "model_index.json", revision=self.revision)
            folder = Path(cached).parent if isinstance(cached, str) else None
        return folder if folder is not None and (folder / "model_index.json").is_file() else None

    def unavailable_reason(self) -> str | None:
        """See `TextToImage.unavailable_reason`."""
        if self.adam8bit and find_spec("bitsandbytes") is None:
            return "model.adam8bit=true needs bitsandbytes: pip install 'unlearnbench[adam8bit]', or leave it false"
        if self.is_file() or Path(self.path).suffix in PICKLES:
            return self._file_lacks()
        if self.folder() is None and not is_hub_id(self.path):
            return f"model.path={self.path}: no such folder, and no name that the hub could know"
        folder, local = self.folder(), self.local()
        if local is not None:
            index = json.loads((local / "model_index.json").read_text(encoding="utf-8"))
            return self.misfit(index) or (self._folder_lacks(local, index) if folder is not None else None)
        if folder is None:
            from huggingface_hub.constants import HF_HUB_OFFLINE

            repair = "HF_HUB_OFFLINE is set; unset it, or set model.path to a folder"
            return f"model {self.path} is not in the hub's cache, {repair}" if HF_HUB_OFFLINE else None
        if not folder.is_dir():
            return f"model.path={self.path}: no such folder"
        return f"model.path={self.path}: no model_index.json there; it must be a folder in diffusers' layout"

    def misfit(self, index: dict[str, Any]) -> str | None:
        """Why the pipeline that model_index.json names is not of this family; None if it is."""
        found = index.get("_class_name", "nothing")
        if found == self.kind:
            return None
        repair = f"use model={FITS[found]}" if found in FITS else f"known: {', '.join(FITS)}"
        where = f"model.config={self.config}" if self.is_file() else f"model.path={self.path}"
        return f"{where}: its model_index.json names {found}, this family is {self.kind}; {repair}"

    def _folder_lacks(self, folder: Path, index: dict[str, Any]) -> str | None:
        for part in self.parts:
            if list((folder / part).glob("*.safetensors")) or (part in self.may_lack and index.get(part) == [None, None]):
                continue
            if list((folder / part).glob("*.bin")):
                return (
                    f"model.path={self.path}: {part} holds only a pickle (.bin), which is not opened; convert it once with "
                    "pipe.save_pretrained(folder, safe_serialization=True)"
                )
            return f"model.path={self.path}: no safetensors file in {part}/"
        return None

    def variant(self) -> str | None:
        """The infix of the weights' names ("fp16") in a folder that has no others; None where plain names are there."""
        folder = self.folder()
        names = [] if folder is None else [path.name for part in self.parts for path in (folder / part).glob("*.safetensors")]
        found = {match.group(1) for name in names if (match := WEIGHTS.fullmatch(name))}
        return next(iter(found)) if len(found) == 1 else None

    def _file_lacks(self) -> str | None:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        path = Path(self.path)
        if path.suffix in PICKLES:
            return (
                f"model.path={self.path}: {path.suffix} is a pickle, which is not opened; convert it once, where you trust it: "
                "safetensors.torch.save_file(torch.load(old, weights_only=True)['state_dict'], new)"
            )
        if not path.is_file():
            return f"model.path={self.path}: no such file"
        index = Path(self.config or "") / "model_index.json"
        if self.config is not None and index.is_file():
            return self.misfit(json.loads(index.read_text(encoding="utf-8")))
        if HF_HUB_OFFLINE or (self.config is not None and self.config.startswith((".", "/"))) or not self.file_is_whole:
            return (
                f"model.config={self.config}: a single file holds weights alone; name a folder in diffusers' layout with "
                f"model_index.json, {self.file_needs()}"
            )
        return None

    def file_needs(self) -> str:
        """What `config` must hold beside a single file."""
        return "the config.json of every part, the scheduler and the tokenizers (no weights)"

    # --- loading ----------------------------------------------------------------------------------------------------

    def load(self, device: torch.device) -> Self:
        """See `TextToImage.load`."""
        model = copy.copy(self)
        model.place(self._read(), device)
        return model

    def place(self, pipeline: Any, device: torch.device) -> None:
        """Take a pipeline's parts onto the device.

        Raises:
            UserError: the family cannot do what the checkpoint's settings ask.
        """
        self.pipeline, self.device = pipeline, device
        self.scheduler, self.tokenizer = pipeline.scheduler, pipeline.tokenizer
        for part in self.parts:
            module = getattr(pipeline, part)
            if module is not None:
                memory_format = torch.channels_last if part in ("unet", "vae") else torch.preserve_format
                setattr(self, part, module.to(device, memory_format=memory_format).eval().requires_grad_(False))
        if self._vae_in_fp32():
            self.vae.float()
        if device.type == "cuda":
            fp32_precision(self.tf32)
        denoiser = self.modules()[self.denoiser]
        if self.checkpointing:
            denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        if self.compile:
            denoiser.compile()
        self.accept()

    def accept(self) -> None:
        """Refuse what the family cannot do, once its settings are known.

        Raises:
            UserError: the size does not divide into latents, or the autoencoder is of an unknown sort.
        """
        side = self.pipeline.image_processor.config.vae_scale_factor * self.patch()
        if self.size % side:
            raise UserError(f"model.size={self.size}: must be a multiple of {side} for {self.path}")
        if getattr(self.vae.config, "latents_mean", None) is not None:
            raise UserError(f"model.path={self.path}: its autoencoder normalises by latents_mean, which is not supported")

    def patch(self) -> int:
        """The side of the squares of latent pixels that the denoiser sees as one."""
        return 1

    def _read(self) -> Any:
        import diffusers
        from diffusers.utils import logging as diffusers_logging
        from huggingface_hub.errors import GatedRepoError
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        kind = getattr(diffusers, self.kind)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # its new name is newer than 0.35
                if self.is_file():
                    return self.from_file(kind)
                source = str(self.folder() or self.path)
                index = kind.load_config(source, revision=self.revision)
                misfit = self.misfit(index)
                if misfit is not None:
                    raise UserError(misfit)
                absent = {name: None for name, saved in index.items() if saved == [None, None]}
                return kind.from_pretrained(
                    source, revision=self.revision, torch_dtype=DTYPES[self.dtype], use_safetensors=True,
                    variant=self.variant(), **(absent | self.load_overrides()),
                )  # fmt: skip
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            causes = [error, error.__cause__, error.__context__]
            if any(isinstance(cause, GatedRepoError) or "gated" in str(cause).lower() for cause in causes):
                reason += " (accept its licence on the hub, then `hf auth login`)"
            raise UserError(f"model.path={self.path}: cannot be loaded: {reason}") from error

    def load_overrides(self) -> dict[str, Any]:
        """What of a checkpoint is not loaded, as `from_pretrained` is told."""
        return {}

    def save_pipeline(self, folder: Path) -> None:
        """See `TextToImage.save_pipeline`.

        Raises:
            UserError: it has adapters beside its layers, which diffusers would silently leave out when it loads the folder.
        """
        if bottleneck_adapters(self.modules()) or gated_loras(self):
            raise UserError("a plain pipeline has no place for adapters: set save_pipeline=false; weights.safetensors holds them")
        self.pipeline.save_pretrained(folder, safe_serialization=True)

    # --- sampling ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def denoise(
        self,
        cond: Conditioning,
        uncond: Conditioning,
        generators: Sequence[torch.Generator],
        steps: int,
        scale: float,
        guidance: SamplingGuidance | None = None,
        stop_after: int | None = None,
    ) -> Tensor:
        """See `TextToImage.denoise`."""
        scheduler = self.schedule(steps)
        latents = torch.stack([torch.randn(self.latent_shape(), generator=g) for g in generators]).to(self.device)
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        if guidance is not None:
            predict = guidance.start(self, cond, uncond, steps, scale)
        else:
            predict = self.predictor(cond, uncond, scale)
        random = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for step, time in enumerate(scheduler.timesteps[:stop_after]):
            with self.autocast():
                predicted = predict(step, self.seen(scheduler, latents, time), time)
            latents = scheduler.step(predicted, time, latents, **random).prev_sample
        if stop_after is not None and stop_after < len(scheduler.timesteps):
            return self.seen(scheduler, latents, scheduler.timesteps[stop_after])
        return latents

    def timestep_after(self, step: int, steps: int) -> Tensor:
        """See `TextToImage.timestep_after`."""
        return self.schedule(steps).timesteps[step]

    # --- the autoencoder --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `TextToImage.decode`."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        with self._vae_autocast():
            pixels = torch.cat([self.vae.decode(part).sample.float() for part in scaled.split(self._vae_batch())])
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """See `TextToImage.encode_images`."""
        means = []
        for part in images.split(self._vae_batch()):
            pixels = part.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            with self._vae_autocast():
                means.append(self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean.float())
        return (torch.cat(means) - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor

    def _vae_batch(self) -> int:
        """Images at a time: eight of 512 pixels a side, or as many pixels of another size, take some 4 GB in fp32."""
        return max(1, 8 * 512**2 // self.size**2)

    def _vae_in_fp32(self) -> bool:
        """Some autoencoders overflow in fp16, and say so."""
        return self.dtype == "fp16" and bool(self.vae.config.force_upcast)

    def _vae_autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._vae_in_fp32() else self.autocast()


def fp32_precision(tf32: bool) -> None:
    """Let this process's GPU multiply fp32 numbers in TF32 (10 bits of mantissa), or in full."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
