"""The names that others give to parameters in published files, and the parameters of a model that they stand for.

Nothing is loaded: names go in, names come out. Renaming between layouts is that of diffusers' own converters. The formats
follow the files of ESD, UCE, SalUn, AdvUnlearn, Concept Ablation, SPM (Con6924/SPM, src/models/spm.py) and Receler
(jasper0314-huang/Receler, receler/erasers), and LoRAs of diffusers, peft and kohya.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

Shapes = Mapping[str, list[int]]

WRAPPERS = re.compile(r"^(?:(?:state_dict|module|_orig_mod|base_model\.model)\.)+")
COMPVIS_BLOCKS = "input_blocks|middle_block|output_blocks|time_embed|label_emb|out"
COMPVIS = re.compile(rf"^(?:(?:model\.)?diffusion_model\.)?((?:{COMPVIS_BLOCKS})\.)")
COMPVIS_PREFIX = "model.diffusion_model."
RENAMED_PARTS = {"cond_stage_model.transformer.": "text_encoder.", "conditioner.embedders.0.transformer.": "text_encoder."}
NO_PARAMETERS = re.compile(  # buffers of schedules, averages and encoders, which change no image
    r"(?:^|\.)(?:position_ids|logit_scale)$|^model_ema\.|^(?:betas|logvar|scale_factor|global_step)$"
    r"|^(?:alphas|sqrt|log_one_minus|posterior|lvlb)_\w+$"
)
LORA = re.compile(r"lora_(?:down|up|A|B)\b|lora\.(?:down|up)\b|lora_linear_layer|hada_w|lokr_w|dora_scale")
LORA_ROLE = re.compile(r"(.+?)\.(?:lora_(?P<matrix>A|B|down|up)(?:\.\w+)?\.weight|(?P<alpha>alpha))")
KOHYA_FLUX = re.compile(r"^lora_unet_(?:double|single)_blocks_")
KOHYA_PREFIXES = {
    "unet": ("lora_unet",),
    "transformer": ("lora_unet", "lora_transformer"),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
    "text_encoder_3": ("lora_te3",),
}
ERASER = re.compile(r"((?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+)\.((?:down|up)\.(?:weight|bias))")
TRANSFORMER = re.compile(r"^(?:transformer\.|lora_transformer_)|(?:single_transformer|double|single|joint)_blocks")


def canonical(name: str) -> str:
    """A parameter's name as transformers 5 has it; earlier versions have CLIP's parameters below `text_model`."""
    return name.replace(".text_model.", ".", 1) if name.startswith("text_encoder") else name


@dataclass(frozen=True)
class Layout:
    """The parameters of a model, by name.

    Attributes:
        path: the model, for messages.
        shapes: the shape of every parameter, by its canonical name.
        denoiser: the part that predicts: unet or transformer.
        denoiser_config: its settings in diffusers.
    """

    path: str
    shapes: Shapes
    denoiser: str
    denoiser_config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parts(self) -> list[str]:
        """The names of the parts, the denoiser first."""
        parts = dict.fromkeys(name.partition(".")[0] for name in self.shapes)
        return sorted(parts, key=lambda part: (part != self.denoiser, part))

    @cached_property
    def lora_targets(self) -> dict[str, str]:
        """The weights that a LoRA may change, by all names of their layers in diffusers', peft's and kohya's files."""
        targets = {}
        for name, shape in self.shapes.items():
            layer = name.removesuffix(".weight")
            if layer == name or len(shape) < 2:
                continue
            part, _, path = layer.partition(".")
            paths = [path, f"text_model.{path}"] if part.startswith("text_encoder") else [path]
            for path in paths:
                targets[f"{part}.{path}"] = name
                targets |= {f"{prefix}_{path.replace('.', '_')}": name for prefix in KOHYA_PREFIXES.get(part, ())}
                if part == self.denoiser:
                    targets[path] = name
        return targets


@dataclass(frozen=True)
class Renaming:
    """What the names of a file stand for.

    Attributes:
        parameters: the name in the file of each parameter.
        unknown: the names that fit no parameter.
    """

    parameters: dict[str, str]
    unknown: list[str]


@dataclass(frozen=True)
class LoraPair:
    """The tensors of a LoRA on one layer.

    Attributes:
        parameter: the weight that they change.
        down: the name of A (rank, columns) in the file.
        up: the name of B (rows, rank).
        alpha: the name of alpha; None if the file has none.
    """

    parameter: str
    down: str
    up: str
    alpha: str | None


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file holds low-rank adapters."""
    return any(LORA.search(name) for name in names)


def is_eraser(names: Iterable[str]) -> bool:
    """Whether a file holds Receler's erasers (`eraser_weights.pt`, converted)."""
    names = list(names)
    return bool(names) and all(ERASER.fullmatch(WRAPPERS.sub("", name)) for name in names)


def is_whole_checkpoint(names: Iterable[str]) -> bool:
    """Whether a file is a single-file checkpoint with its autoencoder, in CompVis' names."""
    prefixes = {name.partition(".")[0] for name in names}
    return {"first_stage_model", "model"} <= prefixes


def rename_weights(shapes: Shapes, layout: Layout) -> Renaming:
    """The parameters of weights: a state dict of parts, or of some of their parameters, in diffusers' or CompVis' names."""
    bare = {name: WRAPPERS.sub("", name) for name in shapes}
    bare = {name: rest for name, rest in bare.items() if not NO_PARAMETERS.search(rest)}
    compvis = _compvis_names([rest for rest in bare.values() if COMPVIS.match(rest)], layout)
    full = {}
    for name, rest in bare.items():
        for theirs, ours in RENAMED_PARTS.items():
            rest = ours + rest.removeprefix(theirs) if rest.startswith(theirs) else rest
        full[name] = compvis.get(rest, rest)
    loose = {name: rest for name, rest in full.items() if canonical(rest) not in layout.shapes}
    part = _part_of({rest: shapes[name] for name, rest in loose.items()}, layout)
    full |= {name: f"{part}.{rest}" for name, rest in loose.items()}
    unknown = [name for name, rest in full.items() if canonical(rest) not in layout.shapes]
    return Renaming({canonical(rest): name for name, rest in full.items() if name not in unknown}, unknown)


def _part_of(shapes: Shapes, layout: Layout) -> str:
    """The part that names without a part belong to: the one with most of them, in these shapes."""

    def fit(part: str) -> tuple[int, int]:
        expected = [layout.shapes.get(canonical(f"{part}.{name}")) for name in shapes]
        equal = sum(value == shape for value, shape in zip(expected, shapes.values(), strict=True))
        return equal, sum(value is not None for value in expected)

    return max(layout.parts, key=fit)


def _compvis_names(names: list[str], layout: Layout) -> dict[str, str]:
    """The parameter of each name of CompVis' UNet, by diffusers' converter, which expects complete blocks."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if not names or "layers_per_block" not in layout.denoiser_config:
        return {}
    given = {COMPVIS.sub(rf"{COMPVIS_PREFIX}\1", name): name for name in names}
    blocks = [re.match(r"(?:model\.diffusion_model\.)(\w+_blocks?)\.(\d+)", name) for name in given]
    last = {match[1]: 0 for match in blocks if match}
    for match in filter(None, blocks):
        last[match[1]] = max(last[match[1]], int(match[2]))
    filler = [f"{COMPVIS_PREFIX}{block}.{number}.filler" for block, most in last.items() for number in range(most + 1)]
    layers = [name.rpartition(".")[0] for name in given if re.search(r"\.(?:op|conv)\.\w+$", name)]
    layers += [f"{COMPVIS_PREFIX}label_emb.0.{layer}" for layer in (0, 2)]
    filler += [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    table = dict.fromkeys(filler, "") | given
    converted = convert_ldm_unet_checkpoint(table, dict(layout.denoiser_config))
    return {name: f"{layout.denoiser}.{ours}" for ours, name in converted.items() if name}


def lora_pairs(names: Iterable[str], layout: Layout) -> tuple[list[LoraPair], list[str]]:
    """The layers that a LoRA changes, and the names that fit none."""
    names = list(names)
    sgm = _sgm_names(names, layout)
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for name in names:
        match = LORA_ROLE.fullmatch(sgm.get(name) or _peft_name(name))
        if match is None:
            unknown.append(name)
        else:
            role = {"A": "down", "B": "up", None: "alpha"}.get(match["matrix"], match["matrix"])
            layers.setdefault(match[1], {})[role] = name
    pairs = []
    for layer, roles in layers.items():
        parameter = layout.lora_targets.get(layer)
        if parameter is None or not {"down", "up"} <= roles.keys():
            unknown += roles.values()
        else:
            pairs.append(LoraPair(parameter, roles["down"], roles["up"], roles.get("alpha")))
    return pairs, unknown


def _peft_name(name: str) -> str:
    """A name of a LoRA in any of diffusers' forms, as peft has it: a layer, then lora_A or lora_B."""
    from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    bare = WRAPPERS.sub("", name)
    if not bare.startswith("text_encoder"):
        return next(iter(convert_unet_state_dict_to_peft({bare: None})))
    form = StateDictType.DIFFUSERS_OLD if re.search(r"to_(?:q|k|v|out)_lora", bare) else StateDictType.DIFFUSERS
    return next(iter(convert_state_dict_to_peft({bare: None}, form)))


def _sgm_names(names: list[str], layout: Layout) -> dict[str, str]:
    """The peft name of each name of a kohya LoRA with CompVis' blocks, as those of SDXL have, by diffusers' converters."""
    from diffusers.loaders import lora_conversion_utils as converters

    blocks = [name for name in names if re.match(r"lora_unet_(?:input_blocks|middle_block|output_blocks)_", name)]
    if not blocks or "layers_per_block" not in layout.denoiser_config:
        return {}
    config = SimpleNamespace(layers_per_block=layout.denoiser_config["layers_per_block"])
    matrices = {name: name for name in blocks if not name.endswith(".alpha")}
    try:
        renamed = converters._maybe_map_sgm_blocks_to_diffusers(matrices, config)
        converted, _ = converters._convert_non_diffusers_lora_to_diffusers(renamed)
    except (ValueError, KeyError, IndexError):
        return {}
    forms = {name: _peft_name(ours) for ours, name in converted.items()}
    layers = {name.partition(".")[0]: form.partition(".lora_")[0] for name, form in forms.items()}
    alphas = [name for name in blocks if name.endswith(".alpha") and name.removesuffix(".alpha") in layers]
    return forms | {name: f"{layers[name.removesuffix('.alpha')]}.alpha" for name in alphas}


def eraser_names(names: Iterable[str], layout: Layout) -> Renaming:
    """The bottleneck adapters of Receler's erasers: each serves all cross-attention layers of its transformer."""
    parameters: dict[str, str] = {}
    unknown = []
    layers = [name.removesuffix(".attn2.to_q.weight") for name in layout.shapes if name.endswith(".attn2.to_q.weight")]
    for name in names:
        match = ERASER.fullmatch(WRAPPERS.sub("", name))
        blocks = [layer for layer in layers if match and layer.startswith(f"{layout.denoiser}.{match[1]}.")]
        if match is None or not blocks:
            unknown.append(name)
        parameters |= {f"{block}.attn2.to_out.1.{match[2]}": name for block in blocks if match}
    return Renaming(parameters, unknown)


def nearest_names(name: str, layout: Layout, lora: bool = False) -> list[str]:
    """The three names that are most similar to a name that fits nowhere: of the layers of a LoRA, or of the parameters."""
    bare = WRAPPERS.sub("", name)
    layer = bare.partition(".lora")[0].removesuffix(".alpha") if lora else bare
    names = list(layout.lora_targets if lora else layout.shapes)
    return difflib.get_close_matches(layer, names, n=3, cutoff=0.0)
