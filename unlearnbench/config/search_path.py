"""A folder of the user's yaml files beside those in conf/."""

from __future__ import annotations

from pathlib import Path

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF


def searchpath_overrides(folder: str | Path | None) -> list[str]:
    """The override by which Hydra finds the yaml files of --config-dir; empty without that option.

    Raises:
        UserError: there is no such folder, or one of its files has the name of a file in conf/.
    """
    if not folder:
        return []
    refuse_shadowed_files(folder)
    return [f"hydra.searchpath={[str(Path(folder).resolve())]}"]


def refuse_shadowed_files(folder: str | Path) -> None:
    """Refuse files that have the name of a file in conf/: Hydra would silently prefer the one in conf/.

    Raises:
        UserError: there is no such folder, or one of its files has the name of a file in conf/.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    for path in Path(folder).rglob("*.yaml"):
        name = path.relative_to(folder)
        if (CONF / name).is_file():
            raise UserError(f"{path}: conf/ has its own {name}, which would win; give yours another name")
