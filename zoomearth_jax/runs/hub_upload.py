"""Uploads of exported models to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoomearth_jax.errors import UserError
from zoomearth_jax.runs.hub import first_line, is_hub_name
from zoomearth_jax.terminal.progress import terminal


def check_upload(name: str) -> None:
    """Refuses what can be known beforehand, without asking the hub.

    Raises:
        UserError: no name of the hub, no token, or the hub may not be asked.
    """
    from huggingface_hub import constants, get_token

    if not is_hub_name(name):
        raise UserError(f"--push-to-hub {name}: no name of the Hugging Face hub; give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push-to-hub {name}: HF_HUB_OFFLINE forbids asking the Hugging Face hub; unset it")
    if not get_token():
        raise UserError(f"--push-to-hub {name}: no token; run `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, files: Sequence[str], name: str, public: bool, message: str, replace: bool) -> str:
    """Uploads files of a folder in one commit; the repository's address.

    Args:
        files: names of what is uploaded; nothing else of the folder is.
        name: OWNER/NAME. A new repository is private, unless `public`.
        replace: add the commit to a repository that is there. Weights of an older model that the new one lacks are removed.

    Raises:
        UserError: the hub can't be reached, or refuses. The folder stays as it is.
    """
    import huggingface_hub as hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not terminal():
        disable_progress_bars()
    api = hub.HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=replace)
        operations: list = [hub.CommitOperationAdd(file, str(folder / file)) for file in files]
        old = api.list_repo_files(name) if replace else []
        stale = [file for file in old if ".safetensors" in Path(file).suffixes and file not in files]
        operations += [hub.CommitOperationDelete(file) for file in stale]
        api.create_commit(name, operations, commit_message=message)
    except Exception as error:  # of several libraries
        why = _reason(name, error)
        raise UserError(
            f"--push-to-hub {name}: {why}; {folder} is whole, `hf upload {name} {folder}` uploads it too"
        ) from None
    return str(address)


def _reason(name: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        said = error.server_message or first_line(error)
        said = " ".join(said.split())
        return {
            401: "the Hugging Face hub doesn't know the token; run `hf auth login` again",
            403: f"the token may not write there ({said}); take one with write access, and a name of your own",
            409: "the repository is there already; --overwrite adds a commit to it, or take another name",
        }.get(error.response.status_code, f"the Hugging Face hub refuses it ({said})")
    if type(error).__module__.startswith("httpx"):
        return f"the Hugging Face hub can't be reached ({first_line(error)})"
    return f"the upload to the Hugging Face hub failed ({first_line(error.__cause__ or error)})"
