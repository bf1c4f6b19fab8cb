"""The files of a checkpoint: where they are, and why they cannot be loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import is_hub_id
from unlearnbench.models.checkpoint_parts import (
    INDEX,
    NEVER_LOADED,
    Configs,
    damage,
    file_names,
    is_left_out,
    lora_problem,
    missing_files,
    missing_settings,
    part_configs,
    pickle_repair,
    read_index,
)
from unlearnbench.models.checkpoint_variants import local_variant, offered_variant, weights_by_variant, weights_of
from unlearnbench.models.single_file import content_problem, default_settings
from unlearnbench.storage.hub import HubDownload, HubRepository

FAMILY_OF_CLASS = {
    "StableDiffusionPipeline": "sd14, sd15 or sd21",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3 or sd35",
    "FluxPipeline": "flux",
}
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint of one family. Its methods load nothing and read no weights.

    Attributes:
        path: a hub id, a folder in diffusers' layout, or a single .safetensors file.
        revision: the hub's branch, tag or commit.
        config: with a single file, the folder or hub id that holds what the file does not.
        pipeline_class: the name of the family's class in diffusers.
        parts: the parts of the pipeline that have weights.
        optional_parts: the parts that a checkpoint may leave out.
        single_file_is_whole: whether a single file holds all parts, or the denoiser alone.
        packaged_folder: the folder in this package that `path` names, if it names one.
        variant: the variant of the weights, such as fp16; "full" for plain names, None for the first of `DOWNLOAD_ORDER`.
        dtype: in which the weights are loaded: fp32, fp16 or bf16.
    """

    path: str
    revision: str | None
    config: str | None
    pipeline_class: str
    parts: tuple[str, ...]
    optional_parts: tuple[str, ...] = ()
    single_file_is_whole: bool = True
    packaged_folder: Path | None = None
    variant: str | None = None
    dtype: str = "fp32"

    def local_path(self) -> Path | None:
        """The folder or file on this machine, which may not exist; None if the path is a hub id."""
        if self.packaged_folder is not None:
            return self.packaged_folder
        path = Path(self.path)
        return path if path.exists() or self.path.startswith((".", "/")) else None

    def is_single_file(self) -> bool:
        """Whether the checkpoint is a single file that exists."""
        path = self.local_path()
        return path is not None and path.is_file()

    def local_folder(self) -> Path | None:
        """The folder in diffusers' layout on this machine, including the hub's cache; None if there is none."""
        from huggingface_hub import try_to_load_from_cache

        folder = self.local_path()
        if folder is None and is_hub_id(self.path):
            cached = try_to_load_from_cache(self.path, INDEX, revision=self.revision)
            folder = Path(cached).parent if isinstance(cached, str) else None
        return folder if folder is not None and (folder / INDEX).is_file() else None

    @property
    def settings(self) -> CheckpointFiles:
        """With a single file, the files with its settings: those of `config`, or of the model from which diffusers takes them."""
        if self.config is not None:
            return replace(self, path=self.config, config=None)
        return replace(self, path=default_settings(Path(self.path)), revision=None)

    def settings_folder(self) -> Path | None:
        """The folder in diffusers' layout on this machine with the settings of all parts; None if there is none."""
        if not self.is_single_file():
            return self.local_folder()
        return self.settings.local_folder() if self.config is not None or self.single_file_is_whole else None

    def problem(self) -> str | None:
        """Why the checkpoint cannot be loaded, and the repair; None if no reason is known."""
        if self.local_path() is None and Path(self.path).suffix not in PICKLES and not is_hub_id(self.path):
            return f"model.path={self.path}: no such folder, and not a valid hub id"
        try:
            if self.is_single_file() or Path(self.path).suffix in PICKLES:
                return self._single_file_problem()
            return self._folder_problem() if self.local_path() is not None else self._hub_problem()
        except UserError as error:  # a file of settings is damaged
            return f"model.path={self.path}: {_relative(error, self.local_folder())}"

    def configs(self) -> Configs:
        """The settings of the parts and of the scheduler; empty if they are not on this machine."""
        folder = self.settings_folder()
        return {} if folder is None else part_configs(folder, self.parts)

    def download(self) -> HubDownload | None:
        """What is to be downloaded from the hub; None if nothing."""
        if self.is_single_file():
            return self._settings_download()
        if self.local_path() is not None or not is_hub_id(self.path) or Path(self.path).suffix in PICKLES:
            return None
        folder, missing = self.local_folder(), self._missing()
        if not missing:
            return None
        revision = f" --revision {self.revision}" if self.revision else ""
        state = "not in the hub's cache" if folder is None else f"not whole in the hub's cache ({', '.join(missing)} missing)"
        repair = f"set model.path to a folder, or fetch it once online: `hf download {self.path}{revision}`"
        return HubDownload(f"model {self.path}", state, repair, HubRepository(self.path, self.revision), self.choose)

    def _settings_download(self) -> HubDownload | None:
        if self.problem() is not None or not self.single_file_is_whole:
            return None
        settings = self.settings
        folder = settings.local_folder()
        if folder is not None and not missing_settings(folder, read_index(folder), self.parts, self.optional_parts):
            return None
        what, state = f"model.config {settings.path} (settings alone)", "not in the hub's cache"
        repair = f"set model.config to a folder in diffusers' layout with {INDEX}, {self._config_content()}"
        return HubDownload(what, state, repair, HubRepository(settings.path, settings.revision), settings.choose_settings)

    def choose(self, names: Collection[str]) -> list[str]:
        """The files of the repository that a run loads, in the variant that its precision needs.

        Args:
            names: of all files of the repository.

        Raises:
            UserError: it is no pipeline, or has no weights that can be loaded.
        """
        settings = self.choose_settings(names)
        parts = tuple(part for part in self.parts if part not in self.optional_parts or weights_by_variant(names, part))
        variant = offered_variant(names, parts, self.variant, self.dtype)
        return [*settings, *(name for part in parts for name in weights_of(names, part, variant))]

    def choose_settings(self, names: Collection[str]) -> list[str]:
        """The files of the repository with the settings of a pipeline, its tokenizers among them.

        Raises:
            UserError: it is no pipeline.
        """
        if INDEX not in names:
            single = next((name for name in sorted(names) if "/" not in name and name.endswith(".safetensors")), None)
            repair = f"download {single} and set model.path to that file" if single else "choose another model.path"
            raise UserError(f"it has no {INDEX}, so it is no pipeline in diffusers' layout; {repair}")
        settings = {INDEX}
        for name in names:
            folder, _, file = name.rpartition("/")
            if folder and folder.split("/")[0] not in NEVER_LOADED and "/" not in folder:
                is_setting = file.endswith((".json", ".txt", ".model")) and folder not in self.parts
                settings |= {name} if file == "config.json" or is_setting else set()
        return sorted(settings)

    def commit(self) -> str | None:
        """The commit of a checkpoint in the hub's cache; None elsewhere."""
        folder = None if self.local_path() is not None else self.local_folder()
        return None if folder is None else folder.name

    def class_problem(self, index: dict[str, Any]) -> str | None:
        """Why a pipeline is not of this family; None if it is.

        Args:
            index: the content of its model_index.json.
        """
        name = index.get("_class_name", "nothing")
        if name == self.pipeline_class:
            return None
        repair = f"use model={FAMILY_OF_CLASS[name]}" if name in FAMILY_OF_CLASS else f"known: {', '.join(FAMILY_OF_CLASS)}"
        setting = f"model.config={self.config}" if self.is_single_file() else f"model.path={self.path}"
        return f"{setting}: its {INDEX} names {name}, this family is {self.pipeline_class}; {repair}"

    def loaded_variant(self) -> str | None:
        """The variant of the weights that are loaded, such as "fp16"; None for plain names."""
        folder = self.local_folder()
        if folder is None:
            return None
        index = read_index(folder)
        parts = [part for part in self.parts if not (part in self.optional_parts and is_left_out(index, part))]
        return local_variant(file_names(folder, self.parts), parts, self.variant)[0] or None

    def _folder_problem(self) -> str | None:
        """Why a folder of this machine cannot be loaded."""
        path, folder = self.local_path(), self.local_folder()
        if path is None or not path.is_dir():
            return f"model.path={self.path}: no such folder"
        if folder is None:
            return f"model.path={self.path}: no {INDEX} there; it must be a folder in diffusers' layout"
        if problem := self.class_problem(read_index(folder)):
            return problem
        for part in self.parts:
            pickles = sorted((folder / part).glob("*.bin"))
            if pickles and not list((folder / part).glob("*.safetensors")):
                repair = pickle_repair(pickles[0])
                return f"model.path={self.path}: {part} holds only a pickle (.bin), which is not opened; {repair}"
        if missing := self._missing():
            return f"model.path={self.path}: {', '.join(missing)} missing; fetch the whole folder again"
        return self._damage(folder)

    def _missing(self) -> list[str]:
        """The files that are not on this machine."""
        folder = self.local_folder()
        if folder is None:
            return [INDEX]
        return missing_files(folder, read_index(folder), self.parts, self.optional_parts, self.variant)

    def _damage(self, folder: Path) -> str | None:
        """Why the weights that are loaded are not whole, whatever other variants are; reads the settings of all parts, too.

        Raises:
            UserError: a file of settings is damaged.
        """
        part_configs(folder, self.parts)
        names, variant = file_names(folder, self.parts), self.loaded_variant() or ""
        weights = [folder / name for part in self.parts for name in weights_of(names, part, variant)]
        for path in weights:
            if path.suffix == ".safetensors" and (problem := damage(path)):
                if self.local_path() is None:
                    repair = f"; delete {path.resolve()}, and the next run downloads it again"
                    problem = problem.replace("; fetch it again", repair)
                return f"model.path={self.path}: {_relative(problem, folder)}"
        return None

    def _hub_problem(self) -> str | None:
        """Why a checkpoint in the hub's cache cannot be loaded; None where `download` completes it."""
        folder = self.local_folder()
        if folder is not None and (problem := self.class_problem(read_index(folder)) or self._damage(folder)):
            return problem
        return None

    def _single_file_problem(self) -> str | None:
        path = Path(self.path)
        if path.suffix in PICKLES:
            return f"model.path={self.path}: {path.suffix} is a pickle, which is not opened; {pickle_repair(path)}"
        if not path.is_file():
            return f"model.path={self.path}: no such file"
        if problem := damage(path) or lora_problem(path) or content_problem(path, self.single_file_is_whole):
            return f"model.path={problem}"
        folder = self.settings_folder()
        if folder is not None and (problem := self.class_problem(read_index(folder))):
            return problem
        is_local = self.config is not None and self.settings.local_path() is not None
        if folder is not None and is_local:
            missing = missing_settings(folder, read_index(folder), self.parts, self.optional_parts)
            return f"model.config={self.config}: {', '.join(missing)} missing; fetch the whole folder again" if missing else None
        on_hub = self.single_file_is_whole and not is_local and is_hub_id(self.settings.path)
        if folder is None and not on_hub:
            return (
                f"model.config={self.config}: a single file holds weights alone; name a folder in diffusers' layout with "
                f"{INDEX}, {self._config_content()}"
            )
        return None

    def _config_content(self) -> str:
        if self.single_file_is_whole:
            return "the config.json of every part, the scheduler and the tokenizers (no weights)"
        return "the transformer's config.json, and all other parts with their weights"


def _relative(text: object, folder: Path | None) -> str:
    """A message whose files are named relative to the folder."""
    return str(text).replace(f"{folder}/", "")
