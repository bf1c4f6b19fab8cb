"""Folders uploaded to repositories of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.config.errors import UserError, first_line
from unlearnbench.config.paths import is_hub_id
from unlearnbench.storage.hub import UNREACHABLE


def check_upload(name: str, public: bool) -> None:
    """Check that a folder could be uploaded, before any work for it.

    Args:
        name: the repository, as OWNER/NAME; it need not exist.
        public: whether everybody may read it.

    Raises:
        UserError: the name is none, nobody is logged in, the hub cannot be reached, or the repository is public and is not to be.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if name.count("/") != 1 or not is_hub_id(name):
        raise UserError(f"--push {name}: name the repository as OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {name}: HF_HUB_OFFLINE is set; unset it")
    api = HfApi()
    with _hub_errors(name):
        api.whoami()
        try:
            is_private = api.repo_info(name).private
        except RepositoryNotFoundError:
            return
    if not public and not is_private:
        raise UserError(f"--push {name}: this repository is public; say --public, or name another one")


def upload_folder(folder: Path, name: str, public: bool, message: str) -> str:
    """Upload a folder into a repository of the hub, which is created if there is none; returns its address.

    A new repository is private unless `public`; an existing one stays as it is.

    Raises:
        UserError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(name, f"; the export is complete in {folder}, and the same command uploads it"):
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return str(address)


@contextmanager
def _hub_errors(name: str, remark: str = "") -> Iterator[None]:
    """Turn an error of the hub's client into one line with its repair."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push {name}: nobody is logged in; `hf auth login`, or set HF_TOKEN{remark}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            reason = "the hub refuses your token; `hf auth login` with one that may write there"
        else:
            reason = f"the hub answers: {first_line(error)}"
        raise UserError(f"--push {name}: {reason}{remark}") from error
    except UserError:
        raise
    except Exception as error:  # of the network: each version of the hub's client raises others
        raise UserError(f"--push {name}: {UNREACHABLE}, or the upload failed: {first_line(error)}{remark}") from error
