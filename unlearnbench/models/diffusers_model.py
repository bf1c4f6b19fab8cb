"""A pipeline of diffusers: how it is loaded, how it samples, and its autoencoder."""

from __future__ import annotations

import copy
import inspect
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home
from unlearnbench.console import tick
from unlearnbench.models.adapters.bottleneck import bottleneck_adapters
from unlearnbench.models.adapters.gated_lora import gated_loras
from unlearnbench.models.base import (
    DTYPES,
    Conditioning,
    ImageShape,
    Predictor,
    SamplingGuidance,
    TextToImage,
    check_finite_images,
    stack_conditioning,
)
from unlearnbench.models.checkpoint_files import CheckpointFiles
from unlearnbench.models.checkpoint_parts import Configs
from unlearnbench.models.schedulers import sampling_scheduler
from unlearnbench.storage.downloads import Download, fetch


@dataclass
class DiffusersModel(TextToImage):
    """A pipeline of diffusers, from the hub, a folder or a single file; see `TextToImage` for the settings.

    A family sets these class attributes:
        pipeline_class: the name of its class in diffusers.
        denoiser: the name of the part that predicts.
        parts: the names of all parts that have weights.
        optional_parts: the parts that a checkpoint may leave out.
        single_file_is_whole: whether a single file holds all parts, or the denoiser alone.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    denoiser: ClassVar[str] = "unet"
    optional_parts: ClassVar[tuple[str, ...]] = ()
    single_file_is_whole: ClassVar[bool] = True

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

    # --- what a family may override ---------------------------------------------------------------------------------

    @abstractmethod
    def schedule(self, steps: int, shape: ImageShape | None = None) -> Any:
        """A new scheduler, set to this number of sampling steps of images of `size` x `size` pixels, or of another shape."""

    def scaled_latents(self, scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents (n, c, h, w) of a sampling step, scaled as `predict` takes them."""
        return scheduler.scale_model_input(latents, timestep)

    def predictor(self, cond: Conditioning, uncond: Conditioning, scale: float) -> Predictor:
        """See `TextToImage.predictor`; classifier-free guidance computes both of its predictions as one batch."""
        if scale <= 1:
            return lambda step, latents, timestep: self.predict(latents, timestep, cond)
        stacked = stack_conditioning(uncond, cond)

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            pred_uncond, pred_cond = self.predict(torch.cat([latents, latents]), timestep, stacked).chunk(2)
            return pred_uncond + scale * (pred_cond - pred_uncond)

        return predict

    def load_single_file(self, pipeline_class: Any) -> Any:
        """The pipeline of a single file; the folder of `CheckpointFiles.settings_folder` holds its settings and tokenizers."""
        config = str(self.files.settings_folder())
        return pipeline_class.from_single_file(self.path, config=config, torch_dtype=DTYPES[self.dtype])

    def latent_pixels_per_token(self) -> int:
        """The side, in latent pixels, of the square that the denoiser treats as one token."""
        return 1

    def load_overrides(self) -> dict[str, Any]:
        """Arguments for `from_pretrained`, such as None for a part that is not loaded."""
        return {}

    def unsupported_reason(self, configs: Configs) -> str | None:
        """Why the family does not support a checkpoint or the settings; None if it does, or if nothing is known.

        Args:
            configs: the settings of the parts and of the scheduler, as far as they are known.
        """
        encoders = [config for name, config in configs.items() if name.startswith("text_encoder")]
        layers = [int(config["num_hidden_layers"]) for config in encoders if "num_hidden_layers" in config]
        if self.clip_skip and layers and self.clip_skip >= min(layers):
            return f"model.clip_skip={self.clip_skip}: the text encoder of {self.path} has {min(layers)} layers; skip fewer"
        vae, denoiser = configs.get("vae", {}), configs.get(self.denoiser, {})
        side = self.side_multiple(configs)
        if self.size % side:
            return f"model.size={self.size}: must be a multiple of {side} for {self.path}"
        if vae.get("latents_mean") is not None:
            return f"model.path={self.path}: its autoencoder normalises by latents_mean, which is not supported"
        channels, expected = denoiser.get("in_channels"), vae.get("latent_channels", 4) * self.latents_per_channel()
        if vae and channels not in (None, expected):
            reason = f"its {self.denoiser} takes {channels} channels, text-to-image takes {expected}"
            return f"model.path={self.path}: {reason}; a model for inpainting, editing or upscaling is not supported"
        return None

    def side_multiple(self, configs: Configs) -> int:
        """Height and width of an image are multiples of this many pixels; 1 if nothing is known of the autoencoder."""
        vae = configs.get("vae")
        return 2 ** (len(vae.get("block_out_channels", "x")) - 1) * self.latent_pixels_per_token() if vae else 1

    def latents_per_channel(self) -> int:
        """Input channels of the denoiser for each channel of the latents."""
        return 1

    def longest_tokenizer(self) -> tuple[str, int | None]:
        """The tokenizer of the text encoder that reads most tokens of a prompt, and that number; None for its own."""
        return "tokenizer", None

    def tokenizer_folder(self, name: str) -> Path | None:
        """The folder of a tokenizer on this machine; None if there is none."""
        folder = self.files.settings_folder()
        return None if folder is None else folder / name

    def most_steps(self, configs: Configs) -> int | None:
        """The number of the scheduler's timesteps, the most that sampling can take; None without a limit, or if unknown."""
        return configs.get("scheduler", {}).get("num_train_timesteps")

    def configs(self) -> Configs:
        """The settings of the parts and of the scheduler; before the model is loaded, those of the files on this machine.

        Raises:
            UserError: a file is damaged.
        """
        if self.pipeline is None:
            return self.files.configs()
        parts = {name: module.config for name, module in self.modules().items()} | {"scheduler": self.noise_scheduler.config}
        return {name: config if isinstance(config, dict) else config.to_dict() for name, config in parts.items()}

    def download(self) -> Download | None:
        """What a run has to download; None if nothing."""
        return self.files.download()

    def commit(self) -> str | None:
        """See `TextToImage.commit`."""
        return self.files.commit()

    # --- files ------------------------------------------------------------------------------------------------------

    @property
    def files(self) -> CheckpointFiles:
        """The files of the checkpoint."""
        return CheckpointFiles(
            self.path, self.revision, self.config, self.pipeline_class, self.parts, self.optional_parts,
            self.single_file_is_whole, variant=self.variant, dtype=self.dtype,
        )  # fmt: skip

    def local_folder(self) -> Path | None:
        """See `CheckpointFiles.local_folder`."""
        return self.files.local_folder()

    def unavailable_reason(self) -> str | None:
        """See `TextToImage.unavailable_reason`."""
        if self.adam8bit and find_spec("bitsandbytes") is None:
            return "model.adam8bit=true needs bitsandbytes: pip install 'unlearnbench[adam8bit]', or leave it false"
        files = self.files
        if (problem := files.problem()) is not None:
            return problem
        return self.unsupported_reason(files.configs())

    # --- loading ----------------------------------------------------------------------------------------------------

    def load(self, device: torch.device) -> Self:
        """See `TextToImage.load`."""
        model = copy.copy(self)
        model.install(self._load_pipeline(), device)
        return model

    def install(self, pipeline: Any, device: torch.device) -> None:
        """Make a loaded pipeline this model's, on the device."""
        self.pipeline, self.device = pipeline, device
        pipeline.scheduler = sampling_scheduler(pipeline.scheduler, self.scheduler)
        self.noise_scheduler, self.tokenizer = pipeline.scheduler, pipeline.tokenizer
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
        if (problem := self.unsupported_reason(self.configs())) is not None:
            raise UserError(problem)

    def _load_pipeline(self) -> Any:
        import diffusers
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        files, pipeline_class = self.files, getattr(diffusers, self.pipeline_class)
        if (download := files.download()) is not None:
            fetch([download])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # its new name is newer than 0.35
                if files.is_single_file():
                    if (problem := files.problem()) is not None:
                        raise UserError(problem)
                    return self.load_single_file(pipeline_class)
                source = str(files.local_folder() or files.local_path())
                index = pipeline_class.load_config(source)
                if (problem := files.class_problem(index)) is not None:
                    raise UserError(problem)
                left_out = {name: None for name, saved in index.items() if saved == [None, None]}
                return pipeline_class.from_pretrained(
                    source, torch_dtype=DTYPES[self.dtype], use_safetensors=True, variant=files.loaded_variant(),
                    local_files_only=True, **(left_out | self.load_overrides()),
                )  # fmt: skip
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"model.path={self.path}: cannot be loaded: {reason}") from error

    def save_pipeline(self, folder: Path) -> None:
        """See `TextToImage.save_pipeline`.

        Raises:
            UserError: the model has adapters beside its layers; diffusers would leave them out without a warning.
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
        shape: ImageShape | None = None,
    ) -> Tensor:
        """See `TextToImage.denoise`."""
        scheduler = self.schedule(steps, shape)
        latents = torch.stack([torch.randn(self.latent_shape(shape), generator=g) for g in generators]).to(self.device)
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        if guidance is not None:
            predict = guidance.start(self, cond, uncond, steps, scale)
        else:
            predict = self.predictor(cond, uncond, scale)
        if self.encodes_on_demand:
            for encoder in self.text_encoders():
                encoder.to("cpu")
        randomness = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
        with self.sampling_precision():
            for step, timestep in enumerate(scheduler.timesteps[:stop_after]):
                prediction = predict(step, self.scaled_latents(scheduler, latents, timestep), timestep)
                latents = scheduler.step(prediction, timestep, latents, **randomness).prev_sample
                tick((step + 1) / len(scheduler.timesteps))
        if stop_after is not None and stop_after < len(scheduler.timesteps):
            return self.scaled_latents(scheduler, latents, scheduler.timesteps[stop_after])
        return latents

    @contextmanager
    def sampling_precision(self) -> Iterator[None]:
        """Within the block the denoiser computes in `dtype` without autocast, which casts frozen weights at every call.

        Parameters that are fp32, for they train or were trained, have copies in `dtype` meanwhile.
        """
        if self.dtype == "fp32" or self.plain_half:
            yield
            return
        dtype = DTYPES[self.dtype]
        replaced: list[tuple[dict[str, Any], str, Tensor]] = []
        for module in self.modules()[self.denoiser].modules():
            held: list[dict[str, Any]] = [module._parameters, module._buffers]
            for values in held:
                for name, value in values.items():
                    if value is not None and value.dtype == torch.float32:
                        replaced.append((values, name, value))
                        values[name] = value.detach().to(dtype)
        self.plain_half = True
        try:
            yield
        finally:
            self.plain_half = False
            for values, name, value in replaced:
                values[name] = value

    def timestep_after(self, step: int, steps: int) -> Tensor:
        """See `TextToImage.timestep_after`."""
        return self.schedule(steps).timesteps[step]

    # --- the autoencoder --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `TextToImage.decode`."""
        pixels = self.decode_pixels(latents)
        if not (latents.isfinite().all() & pixels.isfinite().all()):
            check_finite_images(latents, "latents")
            check_finite_images(pixels, "decoded pixels")
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """The pixels of latents (n, c, h, w), float (n, 3, height, width), about -1 to 1."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        parts = scaled.split(self.vae_batch())
        return torch.cat([self._decoded(part, (number + 1) / len(parts)) for number, part in enumerate(parts)])

    def _decoded(self, scaled_latents: Tensor, fraction: float) -> Tensor:
        """Images of the autoencoder; `fraction` of a batch is decoded with them."""
        pixels = self.vae.decode(scaled_latents).sample.float()
        tick(fraction)
        return pixels

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """See `TextToImage.encode_images`."""
        means = []
        for part in images.split(self.vae_batch()):
            pixels = part.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            means.append(self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean.float())
        latents = (torch.cat(means) - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor
        check_finite_images(latents, "encoded latents")
        return latents

    def vae_batch(self) -> int:
        """Images per batch of the autoencoder: as many pixels as eight images of 512 x 512, about 4 GB in fp32."""
        return max(1, 8 * 512**2 // self.size**2)

    def _vae_in_fp32(self) -> bool:
        """Whether the autoencoder overflows in fp16, by its own configuration."""
        return self.dtype == "fp16" and bool(self.vae.config.force_upcast)


def fp32_precision(tf32: bool) -> None:
    """Set whether this process's GPU multiplies fp32 numbers in TF32 (10 bits of mantissa) or in full precision."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
