"""A folder of the user's yaml files beside those in conf/."""

from __future__ import annotations

from pathlib import Path

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, GROUPS, read_text


def searchpath_overrides(folder: str | Path | None) -> list[str]:
    """The override by which Hydra finds the yaml files of --config-dir; empty without that option.

    Raises:
        UserError: there is no such folder, or one of its files is not UTF-8 or has the name of a file in conf/.
    """
    if not folder:
        return []
    refuse_unusable_files(folder)
    return [f"hydra.searchpath={[str(Path(folder).resolve())]}"]


def refuse_unusable_files(folder: str | Path) -> None:
    """Refuse files that are not UTF-8, and those with the name of a file in conf/, which Hydra would silently prefer.

    Raises:
        UserError: there is no such folder, or one of its files is not UTF-8 or has the name of a file in conf/.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    for path in Path(folder).rglob("*.yaml"):
        name = path.relative_to(folder)
        if name.parts[0] in GROUPS and path.is_file():
            read_text(path)  # Hydra would not say which file is not UTF-8
        if (CONF / name).is_file():
            raise UserError(f"{path}: conf/ has its own {name}, which would win; give yours another name")
