"""The folder conf/, the choices in it, and the files that settings name."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearnbench.config.errors import UserError, first_line

_packaged, _beside = Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf"
CONF = _packaged if _packaged.is_dir() else _beside
GROUPS = ("model", "concept", "retain", "prompts", "algo", "metrics", "attack", "protocol", "experiment")


def choices(group: str) -> list[str]:
    """The names that a config group offers."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def concepts_of_domain(domain: str) -> str:
    """The end of an error: the concepts of conf/ with a detector for a domain, and the lists of that world; "" for none."""
    names = [name for name in choices("concept") if domain in _domains(CONF / f"concept/{name}.yaml")]
    return f"; concepts of {domain}: {', '.join(names)}" if names else ""


def _domains(concept: Path) -> list[str]:
    """The domains that a concept's yaml has a detector for, and the world of a list with an attribute."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(concept), resolve=False)
    return [*settings.get("detector", {}), *([settings["world"]] if settings.get("attribute") else [])]


def at_home(path: str) -> str:
    """The path with a leading ~ expanded; unchanged if there is no such home."""
    if path.startswith("~"):
        with suppress(RuntimeError):
            return str(Path(path).expanduser())
    return path


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; not for a name that is too long for one, at which `Path.exists` fails."""
    with suppress(OSError):
        return path.exists()
    return False


def is_folder_name(name: str) -> bool:
    """Whether a name can be a part of a folder's name: it is not empty and leads to no other folder."""
    return bool(name.strip()) and "/" not in name


def cache_folder(path: str | None) -> Path:
    """The folder of the setting `cache`, with a leading ~ expanded.

    Raises:
        UserError: it is empty, as with UNLEARNBENCH_CACHE= and no value, and would be the working folder.
    """
    if not path or not path.strip():
        raise UserError("cache: is empty; name a folder by cache=FOLDER or UNLEARNBENCH_CACHE, or unset that variable")
    return Path(at_home(path))


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a repository's name on the Hugging Face hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def find_file(name: str) -> Path:
    """A file of the user, relative to the working folder, else one in conf/.

    Raises:
        UserError: there is no such file.
    """
    for path in (Path(at_home(name)), CONF / name):
        if exists(path) and path.is_file():
            return path
    raise UserError(f"{name}: no such file, neither here nor in {CONF}")


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark.

    Raises:
        UserError: it cannot be read, is not UTF-8, or holds a NUL; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}, line 1: UTF-16; convert it with `iconv -f utf-16 -t utf-8`")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert it with `iconv -t utf-8`") from error
    if "\0" in text:
        raise UserError(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL character; the file is damaged")
    return text


def read_yaml(path: Path, resolve: bool = True) -> dict[str, Any]:
    """The entries of a user's yaml file, by name.

    Args:
        path: the file.
        resolve: replace interpolations by the values that they name; else they stay as they are written.

    Raises:
        UserError: the file is not yaml, or not a mapping.
    """
    try:
        text = read_text(path)
        entries: Any = (
            OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True) if resolve else yaml.safe_load(text) or {}
        )
    except yaml.YAMLError as error:
        raise UserError(yaml_problem(error, str(path))) from error
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(entries, dict):
        kind = "a list" if isinstance(entries, list) else "a single value"
        raise UserError(f"{path}: {kind}; it must hold entries, name: value")
    return {str(name): value for name, value in entries.items()}


def yaml_problem(error: yaml.YAMLError, file: str = "") -> str:
    """What is wrong with a file that is not yaml, with its name, as far as the error has it, and the line."""
    mark = getattr(error, "problem_mark", None)
    where = ", line ".join(filter(None, [file or getattr(mark, "name", ""), str(mark.line + 1) if mark else ""]))
    return f"{where}: not valid yaml ({getattr(error, 'problem', None) or first_line(error)})"
