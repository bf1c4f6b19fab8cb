"""The model of a finished run, exported in the forms that others load: a diffusers folder, a UNet, a LoRA, a single file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.experiment.provenance import is_same_kind, refuse_without_model, reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.adapters.bottleneck import CROSS_ATTENTION
from unlearnbench.models.adapters.gated_lora import MEMBRANES
from unlearnbench.models.base import DTYPES
from unlearnbench.models.compvis_names import single_file_weights, unet_names
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.lora_file import LORA_FILE, in_kohya_names, kohya_metadata, lora_weights
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.models.sdxl import StableDiffusionXL
from unlearnbench.models.weights import load_weights
from unlearnbench.reports.model_card import MARK, model_card
from unlearnbench.results.exported import FORMS, Exported
from unlearnbench.results.run import Run, load_run
from unlearnbench.storage.atomic import atomic_path, write_text
from unlearnbench.storage.hub_upload import check_upload, upload_folder
from unlearnbench.storage.tensors import read_tensors

DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
XL_UNET = {"layers_per_block": 2, "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}
CLIP_LAYER = re.compile(r"^(text_encoder(?:_2)?)\.(?=encoder\.layers\.)")
SD2_WIDTH = 1024  # of its text encoder, whose single file has open_clip's names and a layer more


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        form: one of `FORMS`.
        whole: with unet, all weights of the UNet as a folder that diffusers loads, and not only those that the run changed.
        kohya: with lora, the names of kohya's programs, and not diffusers'.
        push: the repository of the hub to upload to, as OWNER/NAME; None for none.
        public: everybody may read a repository that the upload creates.
    """

    form: str
    whole: bool = False
    kohya: bool = False
    push: str | None = None
    public: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"--as {self.form}: no such form; {suggest(self.form, FORMS)}")
        for option, needed in (("whole", "unet"), ("kohya", "lora")):
            if getattr(self, option) and self.form != needed:
                raise UserError(f"--{option} belongs to --as {needed}; leave it out with --as {self.form}")
        if self.public and self.push is None:
            raise UserError("--public belongs to --push OWNER/NAME; leave it out, or say both")


@dataclass(frozen=True)
class Source:
    """A finished run whose model is exported.

    Attributes:
        run: the run.
        spec: its settings.
        tensors: its saved weights by name.
        note: the note of their file.
        lora: its low-rank adapter by name; empty if it has none.
    """

    run: Run
    spec: RunSpec
    tensors: dict[str, Tensor]
    note: dict[str, Any]
    lora: dict[str, Tensor]

    @classmethod
    def of(cls, folder: str | Path) -> Source:
        """Read a run's folder.

        Raises:
            UserError: it holds no finished run, or its files are damaged.
        """
        run = load_run(folder)
        refuse_without_model(run)
        spec = RunSpec.of(reopened_config(run, (), ()))
        weights = _read(run.folder / "weights.safetensors")
        adapter = run.folder / LORA_FILE
        return cls(run, spec, *weights, _read(adapter)[0] if adapter.is_file() else {})

    @property
    def model(self) -> DiffusersModel:
        """The settings of the original model; it is not loaded."""
        assert isinstance(self.spec.model, DiffusersModel)
        return self.spec.model

    @property
    def stem(self) -> str:
        """A name for a file that programs list by name: algorithm and concept."""
        return re.sub(r"[^\w.+-]+", "-", f"{self.run.log['algo']}-{self.spec.concept.name}")


def export(folder: str | Path, options: ExportOptions, output: Path | None = None) -> tuple[Path, str | None]:
    """Export the model of a finished run with a model card, and upload it if the options say so.

    Args:
        folder: the run's folder.
        options: the form, and where to upload.
        output: a folder that does not exist or holds an earlier export; by default export-<form> in the run's folder.

    Returns:
        The folder of the export, and the address of the repository that it was uploaded to.

    Raises:
        UserError: the run cannot be exported in this form, the folder is taken, or the hub refuses the upload.
    """
    source = Source.of(folder)
    target = output or source.run.folder / f"export-{options.form}"
    if ".." in target.parts:
        target = target.resolve()
    if problem := export_problem(source, options):
        raise UserError(problem)
    _check_target(target)
    prompts = source.spec.prompts()  # before the model is loaded, for their files may be gone
    if options.push is not None:
        check_upload(options.push, options.public)
    with atomic_path(target) as temporary:
        temporary.mkdir(parents=True)
        file = _write_model(source, options, temporary)
        exported = Exported(
            options.form, file, options.whole, source.model.pipeline_class, source.model.denoiser, source.model.dtype,
            options.push or "",
        )  # fmt: skip
        explicit = any(concept.explicit for concept in source.spec.concept.concepts_by_split("forget").values())
        write_text(temporary / "README.md", model_card(source.run, exported, prompts, explicit))
        if (grid := source.run.folder / "grid.png").is_file():
            shutil.copy(grid, temporary)
    if options.push is None:
        return target, None
    return target, upload_folder(target, options.push, options.public, f"{source.run.name}, as {options.form}")


def export_problem(source: Source, options: ExportOptions) -> str | None:
    """Why a run cannot be exported in this form, and what works; None if nothing is known to prevent it. Loads no model."""
    run, spec = source.run, source.spec
    start = f"{run.folder}: {run.name} cannot be exported"
    if not isinstance(spec.model, DiffusersModel):
        return f"{start}: {type(spec.model).__name__} is no pipeline of diffusers"
    names = list(source.tensors)
    if not names:
        is_unchanged = spec.algo.train == "none" and spec.algo.saves_as_pipeline
        what = "changed nothing" if is_unchanged else "changed only how the model is sampled, which no file of weights holds"
        return f"{start}: it {what}; export a run of a method that trains or edits weights"
    if source.note.get("transport") or any(f".{MEMBRANES}." in name for name in names):
        reason = "its adapters stay beside the layers, and prompts open them"
        return f"{start}: {reason}; repeat it with algo.transport=false, which merges them"
    if not spec.algo.saves_as_pipeline or any(f"{CROSS_ATTENTION}.to_out.1." in name for name in names):
        return f"{start}: it adds layers that no pipeline of diffusers has; `unlearnbench` alone loads its weights.safetensors"
    if options.form == "unet":
        return _unet_problem(source, start)
    if options.form == "lora":
        return _lora_problem(source, options, start)
    if options.form == "single-file" and not spec.model.single_file_is_whole:
        return f"{start} as a single file: only Stable Diffusion 1 and XL can; --as diffusers works"
    return None


def _unet_problem(source: Source, start: str) -> str | None:
    denoiser = source.model.denoiser
    others = sorted({name.partition(".")[0] for name in source.tensors} - {denoiser})
    if not others:
        return None
    works = "--as diffusers works" + ("" if denoiser == "transformer" else ", and --as single-file")
    return f"{start} as a {denoiser}: it changed {' and '.join(others)}, which the file does not hold; {works}"


def _lora_problem(source: Source, options: ExportOptions, start: str) -> str | None:
    algo, repair = source.spec.algo, "--as unet or --as diffusers works"
    if not source.lora and algo.lora is None and not getattr(algo, "rank", 0):
        trains = algo.steps > 0 and not algo.unread_settings & {"steps", "train"}
        again = "repeat it with algo.train=lora, or " if trains else ""
        return f"{start} as a LoRA: it changed whole weights; {again}{repair}"
    if not source.lora:
        return f"{start} as a LoRA: the run has no {LORA_FILE}, which earlier versions did not write; repeat it, or {repair}"
    if lora_weights(list(source.lora)) != source.tensors.keys():
        return f"{start} as a LoRA: it changed more weights than its adapter holds; {repair}"
    if options.kohya and source.model.denoiser != "unet":
        return f"{start} in kohya's names: only a LoRA of a UNet can; leave out --kohya"
    return None


def _check_target(target: Path) -> None:
    """Refuse a file, and a folder with anything but an earlier export, which would be replaced."""
    if target.suffix == ".safetensors":
        raise UserError(f"-o {target}: name a folder; it gets the weights and their model card")
    if (here := Path.cwd()).is_relative_to(target.resolve()):
        raise UserError(f"-o {target}: the export would replace the working folder {here}; name another folder")
    card = target / "README.md"
    is_export = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    if target.exists() and not is_export and (target.is_file() or any(target.iterdir())):
        raise UserError(f"-o {target}: exists and is no export; name another folder")


def _write_model(source: Source, options: ExportOptions, folder: Path) -> str:
    """Write the weights in the form of the options; returns the name of the file, "" if diffusers loads the folder."""
    if options.form == "lora":
        return _write_lora(source, options.kohya, folder)
    if options.form == "unet" and not options.whole:
        denoiser = source.model.denoiser
        weights = {name.removeprefix(f"{denoiser}."): value for name, value in source.tensors.items()}
        save_file(weights, folder / f"{denoiser}.safetensors", {"format": "pt"})
        return f"{denoiser}.safetensors"
    model = load_unlearned(source)
    if options.form == "unet":
        model.modules()[model.denoiser].save_pretrained(folder)  # type: ignore[operator]
    elif options.form == "diffusers":
        model.save_pipeline(folder)
    else:
        if getattr(model.text_encoder.config, "hidden_size", None) == SD2_WIDTH:
            start = f"{source.run.folder}: {source.run.name} cannot be exported as a single file"
            raise UserError(f"{start}: only Stable Diffusion 1 and XL can; --as diffusers works")
        save_file(single_file_weights(model.pipeline), folder / f"{source.stem}.safetensors", {"format": "pt"})
        return f"{source.stem}.safetensors"
    return ""


def _write_lora(source: Source, kohya: bool, folder: Path) -> str:
    lora = {CLIP_LAYER.sub(r"\1.text_model.", name): value for name, value in source.lora.items()}
    if not kohya:
        save_file(lora, folder / DIFFUSERS_LORA, {"format": "pt"})
        return DIFFUSERS_LORA
    is_xl = isinstance(source.model, StableDiffusionXL)
    names: dict[str, str] = {}
    if is_xl:
        layers = [name.removeprefix("unet.").partition(".lora_")[0] for name in lora if name.startswith("unet.")]
        names = unet_names(layers, {**XL_UNET, **source.model.configs().get("unet", {})})
    renamed = in_kohya_names(lora, names, encoders=2 if is_xl else 1)
    save_file(
        renamed, folder / f"{source.stem}.safetensors", {"format": "pt", **kohya_metadata(lora, _kohya_family(source.model))}
    )
    return f"{source.stem}.safetensors"


def _kohya_family(model: DiffusersModel) -> str:
    """The base model as kohya's metadata name it."""
    if isinstance(model, StableDiffusionXL):
        return "sdxl_base_v1-0"
    width = model.configs().get("text_encoder", {}).get("hidden_size")
    return "sd_v2" if isinstance(model, StableDiffusion) and width == SD2_WIDTH else "sd_v1"


def load_unlearned(source: Source) -> DiffusersModel:
    """The model of a run on the CPU, its changed weights in the dtype of the others, in which the run sampled them.

    Raises:
        UserError: the original model cannot be loaded, or is another one than in the run.
    """
    settings, run = replace(source.model, compile=False), source.run
    if (problem := settings.unavailable_reason()) is not None:
        raise UserError(problem)
    device = torch.device("cpu")
    model = settings.load(device)
    if is_same_kind(run.log["device"], device) and not settings.tf32 and not source.model.compile:
        check_original(run, model)
    load_weights(model, run.folder / "weights.safetensors")
    _cast(model, list(source.tensors))
    return model


def check_original(run: Run, model: DiffusersModel) -> None:
    """Refuse a model that is another one than the original of a run on the same kind of device."""
    if model.fingerprint() != run.log["fingerprint"]:
        raise UserError(f"{run.folder}: model {model.path} has changed since the run; repeat the run")


def _cast(model: DiffusersModel, names: Sequence[str]) -> None:
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].data = parameters[name].data.to(DTYPES[model.dtype])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return read_tensors(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
