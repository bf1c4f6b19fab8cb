"""The interface of every text-to-image model: load, encode, predict, sample, parameters."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import suggest
from unlearnbench.config.ranges import at_least
from unlearnbench.models.schedulers import SCHEDULERS
from unlearnbench.storage.cache import digest
from unlearnbench.storage.downloads import Download
from unlearnbench.storage.tensors import tensor_digest

Conditioning = dict[str, Tensor]
ImageShape = tuple[int, int]  # height and width in pixels
Predictor = Callable[[int, Tensor, Tensor], Tensor]


class NonFiniteImage(ArithmeticError):
    """An image of a batch whose latents or pixels are NaN or infinite.

    Attributes:
        index: its place in the batch.
        part: what is not finite, with the step if it is known, such as "latents after step 3 of 20".
    """

    def __init__(self, index: int, part: str) -> None:
        super().__init__(f"image {index} of the batch: its {part} are not finite")
        self.index, self.part = index, part


def check_finite_images(tensor: Tensor, part: str) -> None:
    """Check that a tensor (n, ...), one row an image, has no NaN and no infinity; waits for the GPU once.

    Raises:
        NonFiniteImage: it has; the error names the first such image.
    """
    finite = tensor.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        raise NonFiniteImage(int((~finite).nonzero()[0]), part)


class SamplingGuidance(ABC):
    """A change of how a model is sampled that leaves its weights as they are; an argument of `sample_latents` and `denoise`."""

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """The conditioning of the prompts with the guidance's additions; by default unchanged."""
        return cond

    def saved(self) -> dict[str, Any]:
        """Metadata for a file of weights, from which `load_weights` restores the guidance; by default none."""
        return {}

    @abstractmethod
    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """Begin to sample one batch.

        Args:
            model: the model that samples.
            cond: the conditioning of the batch's prompts.
            uncond: the conditioning of the empty prompt, one row.
            steps: sampling steps.
            scale: the classifier-free guidance scale; 1 or less switches it off.

        Returns:
            A function of the step's number, the scaled latents (n, c, h, w) and the timestep: the guided prediction.
        """


def stack_conditioning(*parts: Conditioning) -> Conditioning:
    """Concatenate conditionings to one batch; one of a single row is repeated to the length of the longest.

    Examples:
        >>> stack_conditioning({"x": torch.zeros(1, 2, 3)}, {"x": torch.ones(4, 2, 3)})["x"].shape
        torch.Size([8, 2, 3])
    """
    count = max(len(value) for part in parts for value in part.values())
    return {key: torch.cat([part[key].expand(count, *part[key].shape[1:]) for part in parts]) for key in parts[0]}


PATTERNS = {
    "none": r"$^",
    "xattn": r"^unet\..*attn2\.",
    "xattn_kv": r"^unet\..*attn2\.to_[kv]\.",
    "not_xattn": r"^unet\.(?!.*attn2\.)",
    "self_attn": r"^unet\..*attn1\.",
    "blocks": r"^unet\..*attentions\.",
    "lora": r"^unet\..*attn[12]\.to_(q|k|v|out\.0)\.weight$",
    "full": r"^unet\.",
    "text_encoder": r"^text_encoder",
}
CAPABILITIES = {
    "cfg": "an unconditional prediction, as of classifier-free guidance",
    "xattn": "cross-attention, whose keys and values depend on the text alone",
    "one_encoder": "one text encoder whose token embeddings are the denoiser's only conditioning",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TextToImage(ABC):
    """A latent diffusion model and its sampling settings.

    Attributes:
        path: a hub id, a folder in diffusers' layout, or a single .safetensors file.
        revision: the hub's branch, tag or commit.
        variant: the variant of the weights, such as fp16, or "full" for plain names; null takes the smallest that suffices.
        config: with a single file, the folder or hub id that holds its settings and tokenizers (see docs/families.md).
        domain: "photo" or an embedded world such as "pictoworld"; it selects prompts, detectors and backbones to fit.
        size: height and width of the images, in pixels.
        steps: sampling steps, at least 1.
        guidance: the classifier-free guidance scale; 1 switches it off.
        dtype: fp32, bf16 or fp16; trained parameters are always fp32.
        checkpointing: recompute the denoiser's activations in the backward pass, which saves memory.
        adam8bit: store Adam's moments in 8 bits (CUDA, and the extra `adam8bit`).
        tf32: let a GPU multiply fp32 numbers with 10 bits of mantissa.
        compile: compile the denoiser by torch.compile.
        scheduler: lms, ddim, pndm, dpm++ or euler, with the checkpoint's noise schedule; null takes the checkpoint's own.
        clip_skip: how many of CLIP's last layers to leave out, for the empty prompt too; 0 for none.
        offload_text_encoders: while images are sampled, the text encoders leave the GPU whenever the denoiser works.
    """

    path: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    domain: str = "photo"
    size: int = 512
    steps: int = 50
    guidance: float = 7.5
    dtype: str = "fp32"
    checkpointing: bool = False
    adam8bit: bool = False
    tf32: bool = False
    compile: bool = False
    scheduler: str | None = None
    clip_skip: int = 0
    offload_text_encoders: bool = False

    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "vae")
    patterns: ClassVar[dict[str, str]] = PATTERNS
    capabilities: ClassVar[frozenset[str]] = frozenset(CAPABILITIES)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r}; {suggest(self.dtype, DTYPES)}")
        at_least(self, 1, "steps")
        at_least(self, 0, "clip_skip")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler: {self.scheduler!r}; {suggest(self.scheduler, SCHEDULERS)}")
        self.plain_half: bool = False  # within `DiffusersModel.sampling_precision`
        self.encodes_on_demand: bool = False  # within `text_encoders_on_demand`
        self.device = torch.device("cpu")
        self.noise_scheduler: Any = None
        self.tokenizer: Any = None

    # --- what a family implements -----------------------------------------------------------------------------------

    @abstractmethod
    def download(self) -> Download | None:
        """What a run has to download; None if nothing."""
        return None

    def commit(self) -> str | None:
        """The hub's commit of the checkpoint; None if it is not from the hub, or not on this machine yet."""
        return None

    def unavailable_reason(self) -> str | None:
        """Why the checkpoint cannot be loaded, and the repair; None if no reason is known. Loads nothing."""

    @abstractmethod
    def load(self, device: torch.device) -> Self:
        """Load the checkpoint onto the device. The loaded model is a new object; this one does not change.

        Raises:
            UserError: it cannot be read, is a pickle, or is not supported by the family.
        """

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The denoiser's conditioning: `prompt_embeds` (n, tokens, width), and for some `pooled_prompt_embeds` (n, width)."""

    def tokenize(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """For each text encoder along the tokens of `prompt_embeds`: its end token, and the token ids of each prompt, padded."""
        return [(self.tokenizer.eos_token_id, self.tokenizer(list(prompts), padding="max_length", truncation=True).input_ids)]

    @abstractmethod
    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's own prediction (noise, velocity or flow; n, c, h, w) in fp32.

        Args:
            noisy_latents: (n, c, h, w).
            timesteps: (n,), or one for all.
            conditioning: of n prompts (see `encode_prompts`).
        """

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of `predict` under the denoising loss (n, c, h, w)."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents (n, c, h, w) with noise at the given timesteps (n,)."""

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Random training timesteps (count,), by the density of the family's training; by default uniform."""
        return torch.randint(self.noise_scheduler.config.num_train_timesteps, (count,), generator=generator).to(self.device)

    @abstractmethod
    def latent_shape(self, shape: ImageShape | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents of one image, of `size` x `size` pixels if no shape is given."""

    @abstractmethod
    def predictor(self, cond: Conditioning, uncond: Conditioning, scale: float) -> Predictor:
        """The prediction of sampling without a `SamplingGuidance`; classifier-free guidance if the scale is above 1."""

    @abstractmethod
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
        """Sample latents (n, c, h, w), each from the noise of its own generator.

        Args:
            cond: the conditioning of n prompts.
            uncond: the conditioning of the empty prompt, one row.
            generators: n, on the CPU.
            steps: sampling steps.
            scale: the classifier-free guidance scale; 1 or less switches it off.
            guidance: a change of sampling, or None.
            stop_after: the number of steps after which to stop; the latents are then scaled as `predict` takes them.
            shape: height and width of the images in pixels; None for `size` x `size`.
        """

    def guided_conditioning(self, prompts: Sequence[str], guidance: SamplingGuidance | None) -> Conditioning:
        """The conditioning of prompts with a guidance's additions."""
        cond = self.encode_prompts(prompts)
        return cond if guidance is None else guidance.conditioned(self, prompts, cond)

    def sample_latents(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        steps: int,
        scale: float,
        guidance: SamplingGuidance | None = None,
        stop_after: int | None = None,
        shape: ImageShape | None = None,
    ) -> Tensor:
        """Sample the latents of prompts (see `denoise`)."""
        cond = self.guided_conditioning(prompts, guidance)
        return self.denoise(cond, self.encode_prompts([""]), generators, steps, scale, guidance, stop_after, shape)

    @abstractmethod
    def timestep_after(self, step: int, steps: int) -> Tensor:
        """The timestep of sampling after `step` of `steps` steps."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images, uint8 (n, h, w, 3), on the CPU.

        Raises:
            NonFiniteImage: the latents or the pixels of an image are NaN or infinite.
        """

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """The means of the latents (n, c, h, w) of images, uint8 (n, h, w, 3).

        Raises:
            NonFiniteImage: the latents of an image are NaN or infinite.
        """

    @abstractmethod
    def save_pipeline(self, folder: Path) -> None:
        """Save the whole model as a folder that diffusers loads."""

    # --- shared -----------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """The modules by their names in the pipeline."""
        return {name: module for name in self.parts if (module := getattr(self, name, None)) is not None}

    def text_encoders(self) -> list[nn.Module]:
        """The text encoders."""
        return [module for name, module in self.modules().items() if name.startswith("text_encoder")]

    @contextmanager
    def text_encoders_on_demand(self) -> Iterator[None]:
        """Within the block `denoise` moves the text encoders to the CPU, and a call of one moves it back to the GPU.

        At its end all are on the GPU. Without `offload_text_encoders`, on a CPU and within another such block it does nothing.
        """
        if not self.offload_text_encoders or self.device.type == "cpu" or self.encodes_on_demand:
            yield
            return

        def fetch(encoder: nn.Module, inputs: Any) -> None:
            encoder.to(self.device)

        hooks = [encoder.register_forward_pre_hook(fetch) for encoder in self.text_encoders()]
        self.encodes_on_demand = True
        try:
            yield
        finally:
            self.encodes_on_demand = False
            for hook in hooks:
                hook.remove()
            for encoder in self.text_encoders():
                encoder.to(self.device)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, named "unet....", "text_encoder....", "vae...."."""
        for part, module in self.modules().items():
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def fingerprint(self) -> str:
        """A hash of everything that determines the images: parameters, scheduler, vocabulary, precision and device."""
        tensors = {k: v for part, m in self.modules().items() for k, v in ((f"{part}.{n}", t) for n, t in m.state_dict().items())}
        scheduler = {k: v for k, v in self.noise_scheduler.config.items() if not k.startswith("_")}
        parts = [type(self.noise_scheduler).__name__, scheduler, tensor_digest(tensors), vocabulary_hash(self.tokenizer)]
        return digest(*parts, self.dtype, self.device.type, *self.fingerprint_extras())

    def fingerprint_extras(self) -> list[Any]:
        """Further things that determine the images."""
        half = [] if self.dtype == "fp32" else ["sampled without autocast"]
        skipped = [f"clip_skip={self.clip_skip}"] if self.clip_skip else []
        return [*half, *(name for name in ("tf32", "compile") if getattr(self, name)), *skipped]

    def autocast(self) -> torch.autocast:
        """A context of half precision if `dtype` is one; trained parameters stay fp32."""
        return torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32" and not self.plain_half)

    def in_half(self, inputs: Tensor) -> Tensor:
        """An input of the denoiser in the precision of its parameters, where they are all in half precision; else unchanged."""
        return inputs.to(DTYPES[self.dtype]) if self.plain_half else inputs

    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def vocabulary_hash(tokenizer: Any) -> str:
    """A hash of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def fresh_scheduler(scheduler: Any) -> Any:
    """A copy of a scheduler, so that its steps do not change the original."""
    return copy.deepcopy(scheduler)
