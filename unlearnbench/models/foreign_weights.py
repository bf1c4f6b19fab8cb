"""Weights that others published, loaded into a model: only what differs changes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from unlearnbench.config.errors import RunError, UserError
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.checkpoint_headers import incompatible_weights, known_shapes, shapes_of_file, shapes_of_folder
from unlearnbench.models.checkpoint_parts import INDEX
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.foreign_names import (
    KOHYA_FLUX,
    TRANSFORMER,
    Layout,
    LoraPair,
    Renaming,
    canonical,
    eraser_names,
    is_eraser,
    is_lora,
    is_whole_checkpoint,
    lora_pairs,
    nearest_names,
    rename_weights,
)
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.models.tiny import Tiny
from unlearnbench.models.weights import install_saved_adapters, load_weights
from unlearnbench.models.weights_source import WeightsSource, weight_files
from unlearnbench.storage.tensors import read_tensors

PEFT_METADATA, PEFT_SETTINGS = "lora_adapter_metadata", "adapter_config.json"  # where diffusers and peft write alpha
BASE_OF_WIDTH = {768: "sd14 or sd15", 1024: "sd21", 2048: "sdxl"}  # by the width of the text embeddings
SPM_EXPONENT = 2.0
NOT_LOW_RANK = re.compile(r"hada_w|lokr_w|dora_scale|lora_magnitude_vector")
ADAPTER = re.compile(r"\.attn2\.to_out\.1\.|\.membranes\.")  # parameters that the original does not have


class LoadedWeights(NamedTuple):
    """What `ForeignWeights.load` changed: the names of the parameters that differ, and the guidance of sampling."""

    names: list[str]
    guidance: SamplingGuidance | None


@dataclass(frozen=True)
class ForeignWeights:
    """Weights that others published, of one of the `kind`s that `kind` names.

    Attributes:
        source: where they are.
        scale: the strength of a LoRA.
        number: of SPM's adapters among several: 0 for the first.
    """

    source: WeightsSource
    scale: float = 1.0
    number: int = 0

    @cached_property
    def kind(self) -> str:
        """pipeline, single file, run (weights that a run saved), lora, spm, receler or weights; "" if they are not here yet."""
        if self.source.problem() is not None or (path := self.source.path()) is None:
            return ""
        if (path / INDEX).is_file():
            return "pipeline"
        file = _File.read(path)
        if is_lora(file.shapes):
            return "spm" if {"prompts", "rank"} <= file.metadata.keys() else "lora"
        if "original" in file.note:
            return "run"
        if is_whole_checkpoint(file.shapes):
            return "single file"
        return "receler" if is_eraser(file.shapes) else "weights"

    def problem(self, model: TextToImage) -> str | None:
        """Why the weights cannot be loaded into the model, with the repair; None if no reason is known. Reads headers alone."""
        problem = self.source.problem() or self._problem(model)
        return problem and f"algo.weights={self.source.weights}: {problem}"

    def _problem(self, model: TextToImage) -> str | None:
        path = self.source.path()
        if path is None or (layout := layout_of(model)) is None:
            return None
        if self.scale != 1 and self.kind not in ("lora", "spm"):
            return f"algo.scale={self.scale:g} is for a LoRA, and these weights are none; leave it out"
        if self.kind in ("pipeline", "single file"):
            return self._pipeline_problem(model, layout, path)
        if self.kind == "run":
            [file] = weight_files(path)
            problem = incompatible_weights(file, model)
            return problem and problem.removeprefix(f"{file}: ")
        return self._reading(layout).problem(layout)

    def load(self, model: TextToImage) -> LoadedWeights:
        """Load the weights into the model.

        A value counts as equal to the model's if it is so in the less precise of the two dtypes. Changed parameters take the more
        precise one; those with a merged LoRA are fp32.

        Raises:
            UserError: the weights do not fit the model.
            RunError: a value is not finite.
        """
        path = self.source.fetch()
        if (problem := self.problem(model)) is not None:
            raise UserError(problem)
        if self.kind == "run":
            [file] = weight_files(path)
            guidance = load_weights(model, file)
            return LoadedWeights(list(read_tensors(file)[0]), guidance)
        if self.kind in ("pipeline", "single file"):
            other = _pipeline_model(model, path, self.kind).load(torch.device("cpu"))
            return LoadedWeights(list(_changed(model, other.named_parameters())), None)
        layout = layout_of(model)
        if layout is None:
            raise UserError(f"algo.weights={self.source.weights}: {type(model).__name__} is no model of diffusers")
        reading = self._reading(layout)
        return LoadedWeights(list(_changed(model, reading.values(model))), reading.guidance())

    def _reading(self, layout: Layout) -> _Reading:
        path = self.source.path()
        assert path is not None
        file = _File.read(path)
        if self.kind in ("lora", "spm"):
            pairs, unknown = lora_pairs(file.shapes, layout)
            if self.kind == "spm":
                return _Spm(file, pairs, unknown, self.scale, self.number)
            return _Lora(file, pairs, unknown, self.scale)
        rename = eraser_names if self.kind == "receler" else rename_weights
        return _Weights(file, rename(file.shapes, layout))

    def _pipeline_problem(self, model: TextToImage, layout: Layout, path: Path) -> str | None:
        other = _pipeline_model(model, path, self.kind)
        if (problem := other.unavailable_reason()) is not None:
            return problem.removeprefix(f"model.path={other.path}: ").removeprefix(f"model.config={other.config}: ")
        for name, shape in shapes_of_folder(path, other.parts).items() if self.kind == "pipeline" else ():
            expected = layout.shapes.get(canonical(name))
            if expected is not None and expected != shape:
                return shape_problem(name, shape, expected, layout)
        return None


def layout_of(model: TextToImage) -> Layout | None:
    """The names and shapes of a model's parameters; None if they are not known before it is loaded."""
    if isinstance(model, Tiny) and model.pipeline is None:
        model = model.load(torch.device("cpu"))
    if not isinstance(model, DiffusersModel) or (shapes := known_shapes(model)) is None:
        return None
    config = model.configs().get(model.denoiser, {})
    return Layout(model.path, {canonical(name): shape for name, shape in shapes.items()}, model.denoiser, dict(config))


def shape_problem(name: str, shape: list[int], expected: list[int], layout: Layout) -> str:
    """The refusal of weights of another base model, which is named where the width of its text embeddings tells it."""
    base = BASE_OF_WIDTH.get(shape[-1], "") if re.search(r"attn2\.to_[kv]\b|attn2_to_[kv]\b", name) else ""
    hint = f", such as model={base.split(' or ')[0]}" if base and len(shape) == 2 else ""
    sizes = f"{name} has the shape {_size(shape)}, in {layout.path} it is {_size(expected)}"
    return f"{sizes}; these weights belong to another base model{hint}"


def unknown_problem(unknown: list[str], count: int, layout: Layout, lora: bool) -> str:
    """The refusal of names that fit nowhere, with the three nearest names of the first."""
    nearest = ", ".join(nearest_names(unknown[0], layout, lora))
    family = ""
    if layout.denoiser == "unet" and any(TRANSFORMER.search(name) for name in unknown):
        family = "; they seem to be of a transformer, such as flux or sd3, and this model has a unet"
    elif layout.denoiser != "unet" and any("unet" in name or "attn2" in name for name in unknown):
        family = f"; they seem to be of a unet, and this model has a {layout.denoiser}"
    if any(NOT_LOW_RANK.search(name) for name in unknown):
        family = "; of adapters, only LoRA is read, not LoHa, LoKr or DoRA"
    what = "layer" if lora else "parameter"
    return f"{len(unknown)} of {count} names fit no {what} of {layout.path}, such as {unknown[0]}; nearest: {nearest}{family}"


class _File(NamedTuple):
    """The tensors of a file, or of the shards of one.

    Attributes:
        paths: the files.
        shapes: the shape of each tensor.
        metadata: the metadata of the header, and the settings of a peft adapter beside the file.
        note: what a run of this package, or `unlearnbench convert`, wrote there.
    """

    paths: list[Path]
    shapes: dict[str, list[int]]
    metadata: dict[str, str]
    note: dict[str, Any]
    converted: dict[str, Tensor] | None = None

    @classmethod
    def read(cls, path: Path) -> _File:
        paths = weight_files(path)
        shapes = {name: shape for file in paths for name, shape in shapes_of_file(file).items()}
        with safe_open(paths[0], framework="pt") as file:
            metadata = dict(file.metadata() or {})
        settings = paths[0].parent / PEFT_SETTINGS
        if settings.is_file() and PEFT_METADATA not in metadata:
            metadata[PEFT_METADATA] = settings.read_text(encoding="utf-8")
        plain = cls(paths, shapes, metadata, json.loads(metadata.get("note", "{}")))
        return plain._of_flux() if any(KOHYA_FLUX.search(name) for name in shapes) else plain

    def _of_flux(self) -> _File:
        """The same LoRA in diffusers' names; kohya's Flux has layers that diffusers splits."""
        from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

        try:
            tensors = _convert_kohya_flux_lora_to_diffusers(dict(self.tensors()))
        except (ValueError, KeyError, RuntimeError):
            return self
        return self._replace(converted=tensors, shapes={name: list(value.shape) for name, value in tensors.items()})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, read one by one."""
        if self.converted is not None:
            yield from self.converted.items()
            return
        for path in self.paths:
            with safe_open(path, framework="pt") as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118


class _Reading:
    """One kind of file, read as parameters of a model."""

    def problem(self, layout: Layout) -> str | None:
        """Why the file does not fit the model."""
        raise NotImplementedError

    def values(self, model: TextToImage) -> Iterator[tuple[str, Tensor]]:
        """The new value of each parameter; adapters are installed first."""
        raise NotImplementedError

    def guidance(self) -> SamplingGuidance | None:
        """The guidance with which to sample."""
        return None


@dataclass
class _Weights(_Reading):
    """Values of parameters, or of bottleneck adapters."""

    file: _File
    renaming: Renaming

    def problem(self, layout: Layout) -> str | None:
        differing = [
            (name, self.file.shapes[name], layout.shapes[parameter])
            for parameter, name in self.renaming.parameters.items()
            if parameter in layout.shapes and self.file.shapes[name] != layout.shapes[parameter]
        ]
        if differing:
            return shape_problem(*_telling(differing), layout)
        if self.renaming.unknown or not self.renaming.parameters:
            return unknown_problem(self.renaming.unknown or list(self.file.shapes), len(self.file.shapes), layout, lora=False)
        return self._eraser_problem(layout)

    def _eraser_problem(self, layout: Layout) -> str | None:
        """Why bottleneck adapters do not fit the width of their layers."""
        for parameter, name in self.renaming.parameters.items():
            width = layout.shapes.get(parameter.partition(".to_out.1.")[0] + ".to_out.0.weight", [0])[0]
            shape = self.file.shapes[name]
            if parameter.endswith(".to_out.1.down.weight") and shape[1:] != [width]:
                return shape_problem(name, shape, [shape[0], width], layout)
        return None

    def values(self, model: TextToImage) -> Iterator[tuple[str, Tensor]]:
        parameters: dict[str, list[str]] = {}
        for parameter, name in self.renaming.parameters.items():
            parameters.setdefault(name, []).append(parameter)
        values = ((p, value) for name, value in self.file.tensors() for p in parameters.get(name, []))
        if any(".to_out.1." in parameter for parameter in self.renaming.parameters):
            adapters = dict(values)
            install_saved_adapters(model, adapters)
            yield from adapters.items()
        else:
            yield from values


@dataclass
class _Lora(_Reading):
    """Low-rank adapters, merged: W + scale alpha / rank B A, with alpha = rank where a file has none."""

    file: _File
    pairs: list[LoraPair]
    unknown: list[str]
    scale: float

    def problem(self, layout: Layout) -> str | None:
        shapes, differing = self.file.shapes, []
        for pair in self.pairs:
            weight, up, down = layout.shapes[pair.parameter], shapes[pair.up], shapes[pair.down]
            if up[0] != weight[0] or math.prod(down[1:]) != math.prod(weight[1:]):
                differing.append((pair.down, [up[0], *down[1:]], weight))
        if differing:
            return shape_problem(*_telling(differing), layout)
        if self.unknown or not self.pairs:
            return unknown_problem(self.unknown or list(shapes), len(shapes), layout, lora=True)
        return None

    def values(self, model: TextToImage) -> Iterator[tuple[str, Tensor]]:
        parameters = _parameters(model)
        for pair, down, up in self.matrices():
            weight = parameters[pair.parameter].detach().float()
            delta = (up @ down).to(weight.device).reshape(weight.shape)
            yield pair.parameter, weight + delta

    def matrices(self) -> Iterator[tuple[LoraPair, Tensor, Tensor]]:
        """A (rank, columns) and the scaled B (rows, rank) of each pair, in fp32."""
        tensors = dict(self.file.tensors())
        settings = json.loads(self.file.metadata.get(PEFT_METADATA, "{}"))
        for pair in self.pairs:
            down, up = tensors[pair.down].float().flatten(1), tensors[pair.up].float().flatten(1)
            rank = len(down)
            factor = float(tensors[pair.alpha]) / rank if pair.alpha else peft_factor(settings, pair.parameter, rank)
            yield pair, down, self.scale * factor * up


@dataclass
class _Spm(_Lora):
    """SPM's adapters, which stay beside the weights; the metadata names the phrases that gate them."""

    number: int

    def problem(self, layout: Layout) -> str | None:
        if layout.denoiser != "unet":
            return f"SPM's adapters are of a unet, and this model has a {layout.denoiser}"
        return super().problem(layout)

    def values(self, model: TextToImage) -> Iterator[tuple[str, Tensor]]:
        adapters: dict[str, Tensor] = {}
        for pair, down, up in self.matrices():
            layer = pair.parameter.removesuffix(".weight")
            adapters |= {f"{layer}.membranes.{self.number}.down": down, f"{layer}.membranes.{self.number}.up": up}
        install_saved_adapters(model, adapters)
        yield from adapters.items()

    def guidance(self) -> SamplingGuidance:
        phrases = [phrase.strip() for phrase in self.file.metadata["prompts"].split(",") if phrase.strip()]
        return FacilitatedTransport([phrases], SPM_EXPONENT)


def peft_factor(settings: Mapping[str, Any], parameter: str, rank: int) -> float:
    """alpha / rank by the settings that diffusers writes into a LoRA's header ("unet.lora_alpha"), or peft beside it.

    With `use_rslora` it is alpha / sqrt(rank). Without settings alpha is the rank.
    """
    part, _, layer = parameter.removesuffix(".weight").partition(".")
    own = {key.removeprefix(f"{part}."): value for key, value in settings.items()}
    patterns = own.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.search(rf"(?:^|\.){key}$", layer)), own.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if own.get("use_rslora") else rank)


def _pipeline_model(model: TextToImage, path: Path, kind: str) -> DiffusersModel:
    """A model of the same family with the weights of a pipeline folder or a single file, and the settings of the model."""
    config = None
    if kind == "single file" and isinstance(model, DiffusersModel):
        config = model.config or str(model.local_folder() or "") or None
    if isinstance(model, Tiny):
        return StableDiffusion(**(model.settings() | {"path": str(path)}))
    assert isinstance(model, DiffusersModel)
    return replace(model, path=str(path), revision=None, config=config, variant=None, compile=False, checkpointing=False)


def _parameters(model: TextToImage) -> dict[str, torch.nn.Parameter]:
    return {canonical(name): parameter for name, parameter in model.named_parameters()}


@torch.no_grad()
def _changed(model: TextToImage, values: Iterator[tuple[str, Tensor]]) -> Iterator[str]:
    """Set each parameter to its new value where it differs; yields the names of these, and of all adapters."""
    parameters: dict[str, torch.nn.Parameter] = {}
    own_names: dict[str, str] = {}
    for name, value in values:  # the first installs the adapters
        parameters = parameters or dict(model.named_parameters())
        own_names = own_names or {canonical(own): own for own in parameters}
        if (own := own_names.get(canonical(name))) is None:
            continue
        if not torch.isfinite(value).all():
            raise RunError(f"{name} of algo.weights holds values that are not finite")
        if _assign(parameters[own], value.detach().to(parameters[own].device)) or ADAPTER.search(own):
            yield own


def _assign(parameter: torch.nn.Parameter, value: Tensor) -> bool:
    """Set a parameter to a value that differs from it; returns whether it does."""
    dtype = _stored_dtype(value)
    narrow = dtype if dtype.itemsize < parameter.dtype.itemsize else parameter.dtype
    if torch.equal(parameter.to(narrow), value.to(narrow)):
        return False
    parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, value.dtype))
    parameter.copy_(value)
    return True


def _stored_dtype(value: Tensor) -> torch.dtype:
    """The narrowest dtype that holds a value exactly, as fp16 for weights that were published so."""
    halves = (dtype for dtype in (torch.float16, torch.bfloat16) if torch.equal(value.to(dtype).to(value.dtype), value))
    return next(halves, value.dtype)


def _telling(differing: list[tuple[str, list[int], list[int]]]) -> tuple[str, list[int], list[int]]:
    """Of tensors whose shapes differ, one that tells the base model by the width of its text embeddings."""
    return next((entry for entry in differing if re.search(r"attn2[._]to_[kv]\b", entry[0])), differing[0])


def _size(shape: list[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
