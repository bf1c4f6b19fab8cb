"""What every text-to-image model offers: load, encode, predict, sample, and the parameters that may train."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.ranges import at_least
from unlearnbench.storage.cache import digest
from unlearnbench.storage.tensors import tensor_digest

if TYPE_CHECKING:
    from unlearnbench.experiment.distributed import Team


Conditioning = dict[str, Tensor]
Predictor = Callable[[int, Tensor, Tensor], Tensor]


class SamplingGuidance(ABC):
    """A change of sampling; where `model.steering` is one, the model's `encode` and `denoise` consult it."""

    def encoded(self, model: TextToImage, prompts: Sequence[str], text: Conditioning) -> Conditioning:
        """What the denoiser is told of the prompts, from what the text encoder said of them; by default just that."""
        return text

    def saved(self) -> dict[str, Any]:
        """What a file of weights says of it, so that it returns with them; by default nothing."""
        return {}

    @abstractmethod
    def start(self, model: TextToImage, text: Conditioning, empty: Conditioning, steps: int, guidance: float) -> Predictor:
        """Begin to sample one batch.

        Args:
            model: the model that samples.
            text: what it is told of the batch's prompts.
            empty: what it is told of the empty prompt, one row.
            steps: sampling steps.
            guidance: the classifier-free guidance scale; 1 or less switches it off.

        Returns:
            A function of the step's number, the scaled latents (n, c, h, w) and the time: the guided prediction.
        """


def stack_conditioning(*texts: Conditioning) -> Conditioning:
    """Texts one after another as one batch; a text of one row is repeated to the length of the longest.

    Examples:
        >>> stack_conditioning({"states": torch.zeros(1, 2, 3)}, {"states": torch.ones(4, 2, 3)})["states"].shape
        torch.Size([8, 2, 3])
    """
    count = max(len(value) for text in texts for value in text.values())
    return {key: torch.cat([text[key].expand(count, *text[key].shape[1:]) for text in texts]) for key in texts[0]}


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
        self.steering: SamplingGuidance | None = None
        self.team: Team | None = None
        self.at_once: int | None = None  # the largest batch that the memory took, once it has refused one

    # --- what a family implements -----------------------------------------------------------------------------------

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """What keeps the checkpoint from loading, with the repair; None if it is all there. Loads nothing."""

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Load the checkpoint onto the device.

        Raises:
            UserError: it cannot be read, or is a pickle.
        """

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is told: tensors whose first dimension is the prompt."""

    def spelled(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
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
    def denoise(
        self,
        text: Conditioning,
        empty: Conditioning,
        noise: Sequence[torch.Generator],
        steps: int,
        guidance: float,
        stop_at: int | None = None,
    ) -> Tensor:
        """Latents sampled from each generator's noise; after `stop_at` steps only, if given, scaled as `predict` takes them."""

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

    def pattern(self, which: str, setting: str = "algo.train") -> re.Pattern[str]:
        """What `which` means in this family: a name of its `patterns`, or a regular expression over parameter names.

        Raises:
            UserError: it is neither.
        """
        try:
            return re.compile(self.patterns.get(which, which))
        except re.error as error:
            raise UserError(f"{setting}={which}: not a regular expression ({error}); {suggest(which, self.patterns)}") from error

    def chosen(self, which: str, names: Iterable[str]) -> list[str]:
        """Those of the names that `which` selects (see `pattern`).

        Raises:
            UserError: there are none.
        """
        pattern = self.pattern(which)
        found = [name for name in names if pattern.search(name)]
        if not found and which != "none":
            raise UserError(f"algo.train={which}: selects no parameter; {suggest(which, self.patterns)}")
        return found

    def selected(self, which: str) -> dict[str, nn.Parameter]:
        """The parameters that `which` selects.

        Raises:
            UserError: there are none.
        """
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in self.chosen(which, parameters)}

    def trainable(self, which: str) -> dict[str, nn.Parameter]:
        """Let the parameters that `which` selects train, in fp32, and no others.

        Raises:
            UserError: there are none.
        """
        chosen = self.selected(which)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        for parameter in chosen.values():
            parameter.data = parameter.data.float()
        return chosen

    def training(self) -> dict[str, nn.Parameter]:
        """The parameters that train now."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Adam over these parameters, its moments in 8 bits if `adam8bit` says so; on CUDA fused, which holds no copies."""
        if self.adam8bit:
            from bitsandbytes.optim import Adam8bit

            return Adam8bit(parameters, lr)
        return torch.optim.Adam(parameters, lr, fused=self.device.type == "cuda" or None)

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
