"""What every text-to-image model offers: load, encode, predict, sample, and the parameters that may train."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnbench import checkpoint
from unlearnbench.bounds import at_least
from unlearnbench.cache import digest
from unlearnbench.checkpoint import tensor_digest
from unlearnbench.config import UserError, suggest
from unlearnbench.models import erasers, membranes

if TYPE_CHECKING:
    from unlearnbench.models.steering import Steering
    from unlearnbench.team import Team

Text = dict[str, Tensor]
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
OFFERS = {
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
    offers: ClassVar[frozenset[str]] = frozenset(OFFERS)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: {self.dtype!r}; {suggest(self.dtype, DTYPES)}")
        at_least(self, 1, "steps")
        self.device = torch.device("cpu")
        self.scheduler: Any = None
        self.tokenizer: Any = None
        self.steering: Steering | None = None
        self.team: Team | None = None
        self.at_once: int | None = None  # the largest batch that the memory took, once it has refused one

    # --- what a family implements -----------------------------------------------------------------------------------

    @abstractmethod
    def missing(self) -> str | None:
        """What keeps the checkpoint from loading, with the repair; None if it is all there. Loads nothing."""

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Load the checkpoint onto the device.

        Raises:
            UserError: it cannot be read, or is a pickle.
        """

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Text:
        """What the denoiser is told: tensors whose first dimension is the prompt."""

    def spelled(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """What the `states` of `encode` stand for along their tokens, of each text encoder in turn: its end token, and ids."""
        return [(self.tokenizer.eos_token_id, self.tokenizer(list(prompts), padding="max_length", truncation=True).input_ids)]

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, text: Text) -> Tensor:
        """The model's own prediction (noise, velocity or flow) for noisy latents (n, c, h, w) at times (n,)."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What `predict` should answer under the denoising loss."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Clean latents with noise of the given times."""

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Training times at random, (count,), by the density of the family's training: uniform unless it says otherwise."""
        return torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator).to(self.device)

    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""

    @abstractmethod
    def denoise(
        self, text: Text, empty: Text, noise: Sequence[torch.Generator], steps: int, guidance: float, stop_at: int | None = None
    ) -> Tensor:
        """Latents sampled from each generator's noise; after `stop_at` steps only, if given, scaled as `predict` takes them."""

    @abstractmethod
    def time_of(self, step: int, steps: int) -> Tensor:
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

    def save_weights(self, path: Path, names: Sequence[str]) -> None:
        """Save the named parameters: what an algorithm changed, and nothing else."""
        parameters = dict(self.named_parameters())
        told = {"original": self.path, **(self.steering.saved() if self.steering else {})}
        checkpoint.write_atomically(path, {name: parameters[name] for name in names}, told)

    def make_room(self, saved: Mapping[str, Tensor]) -> None:
        """Put erasers and membranes in place where saved weights have some; they change nothing until they are loaded."""
        erasers.restore(self.modules(), saved.items())
        membranes.restore(self, saved.items())

    def load_weights(self, path: Path) -> None:
        """Put saved parameters over the original's, in the more precise of the two dtypes.

        Raises:
            UserError: the file is unreadable, or belongs to another model.
        """
        try:
            tensors, told = checkpoint.read(path)
        except Exception as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
        self.make_room(tensors)
        if "transport" in told:
            self.steering = membranes.Transport(told["transport"])
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                if name not in parameters or parameters[name].shape != value.shape:
                    raise UserError(f"{path}: {name} does not fit {self.path}; these weights belong to another model")
                parameters[name].data = parameters[name].data.to(torch.promote_types(parameters[name].dtype, value.dtype))
                parameters[name].copy_(value)

    def fingerprint(self) -> str:
        """A hash of all that shapes its images: parameters, scheduler and vocabulary."""
        tensors = {k: v for part, m in self.modules().items() for k, v in ((f"{part}.{n}", t) for n, t in m.state_dict().items())}
        scheduler = {k: v for k, v in self.scheduler.config.items() if not k.startswith("_")}
        made = [type(self.scheduler).__name__, scheduler, tensor_digest(tensors), vocabulary(self.tokenizer)]
        return digest(*made, self.dtype, self.device.type, *self.besides())

    def besides(self) -> list[Any]:
        """What else shapes its images, for the fingerprint."""
        return [name for name in ("tf32", "compile") if getattr(self, name)]

    def autocast(self) -> torch.autocast:
        """Half precision where `dtype` asks for it; the parameters that train stay fp32 underneath."""
        return torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32")

    def settings(self) -> dict[str, Any]:
        """The settings as given."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Frozen:
    """The original model, seen through the modules of the one that trains: only what trains is held twice.

    Use it as a context, or through the methods that open it themselves; no gradient flows.
    """

    def __init__(self, model: TextToImage, trained: dict[str, nn.Parameter]) -> None:
        self._model = model
        self._trained = trained
        self._original = {name: _copy(value.detach(), DTYPES[model.dtype]) for name, value in trained.items()}

    @contextmanager
    def __call__(self) -> Iterator[TextToImage]:
        """Within the block the model's parameters are the original's."""
        current = {name: value.data for name, value in self._trained.items()}
        try:
            for name, value in self._trained.items():
                value.data = self._original[name]
            with torch.no_grad():
                yield self._model
        finally:
            for name, value in self._trained.items():
                value.data = current[name]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The original values of what trains."""
        return self._original

    def predict(self, noisy: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        """The original's prediction for these prompts."""
        with self() as original:
            return original.predict(noisy, times, original.encode(prompts))


def _copy(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in half precision where that loses nothing, as with weights that were loaded so; else as it is."""
    half = value.to(dtype, copy=True)
    return half if torch.equal(half.to(value.dtype), value) else value.clone()


def vocabulary(tokenizer: Any) -> str:
    """A hash of a tokenizer's words and their numbers."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def fresh(scheduler: Any) -> Any:
    """A scheduler of the same settings with no memory of earlier steps."""
    return copy.deepcopy(scheduler)
