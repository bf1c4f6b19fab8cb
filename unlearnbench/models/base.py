"""What every text-to-image model offers: load, encode, predict, sample, and the parameters that may train."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import suggest
from unlearnbench.config.ranges import at_least
from unlearnbench.storage.cache import digest
from unlearnbench.storage.tensors import tensor_digest

Conditioning = dict[str, Tensor]
Predictor = Callable[[int, Tensor, Tensor], Tensor]


class SamplingGuidance(ABC):
    """A change of how a model is sampled, without a change of its weights; an argument of `sample_latents` and `denoise`."""

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """The conditioning of the prompts with what the guidance adds to it; by default nothing."""
        return cond

    def saved(self) -> dict[str, Any]:
        """What a file of weights records of it, so that `load_weights` restores it; by default nothing."""
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
    """Conditionings one after another as one batch; one of a single row is repeated to the length of the longest.

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
    "cfg": "an unconditional prediction, which classifier-free guidance trains",
    "xattn": "cross-attention, whose keys and values see the text alone",
    "one_encoder": "one text encoder that is all the denoiser hears",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TextToImage(ABC):
    """A latent diffusion model and how it is sampled.

    Attributes:
        path: a hub id, a folder in diffusers' layout, or a single .safetensors file.
        revision: the hub's branch, tag or commit.
        config: with a single file, the folder or hub id that holds what the file does not (see docs/families.md).
        domain: "pictoworld" or "photo": which prompts, detectors and backbones fit it.
        size: height and width of its images, pixels.
        steps: sampling steps.
        guidance: the classifier-free guidance scale; 1 switches it off.
        dtype: fp32, bf16 or fp16; what trains is kept in fp32 whatever it says.
        checkpointing: compute the denoiser's activations again in the backward pass instead of keeping them.
        adam8bit: keep Adam's moments in 8 bits (CUDA, and the extra `adam8bit`).
        tf32: let a GPU multiply fp32 numbers with 10 bits of mantissa; else it does not.
        compile: torch.compile the denoiser.
    """

    path: str
    revision: str | None = None
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

    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "vae")
    patterns: ClassVar[dict[str, str]] = PATTERNS
    capabilities: ClassVar[frozenset[str]] = frozenset(CAPABILITIES)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r}; {suggest(self.dtype, DTYPES)}")
        at_least(self, 1, "steps")
        self.device = torch.device("cpu")
        self.scheduler: Any = None
        self.tokenizer: Any = None

    # --- what a family implements -----------------------------------------------------------------------------------

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """What keeps the checkpoint from loading, with the repair; None if it is all there. Loads nothing."""

    @abstractmethod
    def load(self, device: torch.device) -> Self:
        """The checkpoint loaded onto the device, as a new object; this one stays settings alone.

        Raises:
            UserError: it cannot be read, or is a pickle.
        """

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is told: tensors whose first dimension is the prompt."""

    def tokenize(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """What the `states` of `encode` stand for along their tokens, of each text encoder in turn: its end token, and ids."""
        return [(self.tokenizer.eos_token_id, self.tokenizer(list(prompts), padding="max_length", truncation=True).input_ids)]

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, text: Conditioning) -> Tensor:
        """The model's own prediction (noise, velocity or flow) for noisy latents (n, c, h, w) at times (n,)."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What `predict` should answer under the denoising loss."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Clean latents with noise of the given times."""

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Training times at random, (count,), by the density of the family's training: uniform unless it says otherwise."""
        return torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator).to(self.device)

    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""

    @abstractmethod
    def predictor(self, cond: Conditioning, uncond: Conditioning, scale: float) -> Predictor:
        """How plain sampling predicts: with classifier-free guidance, or up to scale 1 without."""

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
    ) -> Tensor:
        """Latents (n, c, h, w), each sampled from the noise of its own generator.

        Args:
            cond: the conditioning of n prompts.
            uncond: that of the empty prompt, one row.
            generators: n, on the CPU.
            steps: sampling steps.
            scale: the classifier-free guidance scale; 1 or less switches it off.
            guidance: a change of sampling, if there is one.
            stop_after: stop after so many steps; the latents are then scaled as `predict` takes them.
        """

    def sample_latents(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        steps: int,
        scale: float,
        guidance: SamplingGuidance | None = None,
        stop_after: int | None = None,
    ) -> Tensor:
        """The latents of prompts (see `denoise`)."""
        cond = self.encode_prompts(prompts)
        if guidance is not None:
            cond = guidance.conditioned(self, prompts, cond)
        return self.denoise(cond, self.encode_prompts([""]), generators, steps, scale, guidance, stop_after)

    @abstractmethod
    def timestep_after(self, step: int, steps: int) -> Tensor:
        """The training time at which sampling stands after `step` of `steps` steps."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images, uint8 (n, h, w, 3), on the CPU."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """The latent means of images, uint8 (n, h, w, 3)."""

    @abstractmethod
    def save_pipeline(self, folder: Path) -> None:
        """Write the whole model as a folder that plain diffusers loads."""

    # --- what all share ---------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """The modules by their name in the pipeline."""
        return {name: module for name in self.parts if (module := getattr(self, name, None)) is not None}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, named "unet....", "text_encoder....", "vae...."."""
        for part, module in self.modules().items():
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def fingerprint(self) -> str:
        """A hash of all that shapes its images: parameters, scheduler and vocabulary."""
        tensors = {k: v for part, m in self.modules().items() for k, v in ((f"{part}.{n}", t) for n, t in m.state_dict().items())}
        scheduler = {k: v for k, v in self.scheduler.config.items() if not k.startswith("_")}
        made = [type(self.scheduler).__name__, scheduler, tensor_digest(tensors), vocabulary_hash(self.tokenizer)]
        return digest(*made, self.dtype, self.device.type, *self.fingerprint_extras())

    def fingerprint_extras(self) -> list[Any]:
        """What else shapes its images, for the fingerprint."""
        return [name for name in ("tf32", "compile") if getattr(self, name)]

    def autocast(self) -> torch.autocast:
        """Half precision where `dtype` asks for it; the parameters that train stay fp32 underneath."""
        return torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32")

    def settings(self) -> dict[str, Any]:
        """The settings as given."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def vocabulary_hash(tokenizer: Any) -> str:
    """A hash of a tokenizer's words and their numbers."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def fresh_scheduler(scheduler: Any) -> Any:
    """A scheduler of the same settings with no memory of earlier steps."""
    return copy.deepcopy(scheduler)
