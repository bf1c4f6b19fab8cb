"""The files of a checkpoint: where they are, and why they cannot be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import is_hub_id
from unlearnbench.models.checkpoint_parts import (
    INDEX,
    WEIGHTS_FILE,
    Configs,
    damage,
    lora_problem,
    missing_files,
    part_configs,
    pickle_repair,
    read_index,
)
from unlearnbench.storage.hub import HubRepository

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
    """

    path: str
    revision: str | None
    config: str | None
    pipeline_class: str
    parts: tuple[str, ...]
    optional_parts: tuple[str, ...] = ()
    single_file_is_whole: bool = True
    packaged_folder: Path | None = None

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
        folder = self.local_folder()
        return {} if folder is None else part_configs(folder, self.parts)

    def download(self) -> str | None:
        """What a run would download from the hub, in words; None if nothing."""
        if self.local_path() is not None or not self._missing():
            return None
        return f"model {self.path}: {self._repository().look_up().size} from the hub"

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

    def variant(self) -> str | None:
        """The variant in the names of the weights' files ("fp16") if all of them have it; None if plain names exist."""
        path = self.local_path()
        names = [] if path is None else [file.name for part in self.parts for file in (path / part).glob("*.safetensors")]
        variants = {match.group(1) for name in names if (match := WEIGHTS_FILE.fullmatch(name))}
        return next(iter(variants)) if len(variants) == 1 else None

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
        return missing_files(folder, read_index(folder), self.parts, self.optional_parts)

    def _damage(self, folder: Path) -> str | None:
        """Why the weights are not whole; reads the settings of all parts, too.

        Raises:
            UserError: a file of settings is damaged.
        """
        part_configs(folder, self.parts)
        paths = (path for part in self.parts for path in sorted((folder / part).glob("*.safetensors")))
        problem = next((problem for path in paths if (problem := damage(path))), None)
        return problem and f"model.path={self.path}: {_relative(problem, folder)}"

    def _hub_problem(self) -> str | None:
        """Why a checkpoint of the hub cannot be loaded: from its cache, or else by a download."""
        folder = self.local_folder()
        if folder is not None and (problem := self.class_problem(read_index(folder)) or self._damage(folder)):
            return problem
        missing = self._missing()
        if not missing:
            return None
        revision = f" --revision {self.revision}" if self.revision else ""
        state = "not in the hub's cache" if folder is None else f"not whole in the hub's cache ({', '.join(missing)} missing)"
        repair = f"set model.path to a folder, or fetch it once online: `hf download {self.path}{revision}`"
        return self._repository().download_problem(f"model {self.path}", state, repair)

    def _repository(self) -> HubRepository:
        """The repository, and the files of weights that diffusers loads: plain names, without a variant."""
        names = ("diffusion_pytorch_model.safetensors", "model.safetensors", "*-?????-of-?????.safetensors")
        return HubRepository(self.path, self.revision, patterns=tuple(f"{part}/{name}" for part in self.parts for name in names))

    def _single_file_problem(self) -> str | None:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        path = Path(self.path)
        if path.suffix in PICKLES:
            return f"model.path={self.path}: {path.suffix} is a pickle, which is not opened; {pickle_repair(path)}"
        if not path.is_file():
            return f"model.path={self.path}: no such file"
        if problem := damage(path) or lora_problem(path):
            return f"model.path={problem}"
        config = Path(self.config or "")
        if self.config is not None and (config / INDEX).is_file():
            return self.class_problem(read_index(config))
        if HF_HUB_OFFLINE or (self.config is not None and self.config.startswith((".", "/"))) or not self.single_file_is_whole:
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
