"""Models of the Hugging Face hub, by name."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from zoomearth_jax.errors import UserError

PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*", "LICENSE*", "README.md")  # what is fetched
_NAME = re.compile(r"(?!runs/)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # verbs write to runs/


def is_hub_name(name: str | Path) -> bool:
    """Whether a text has the form of a model's name on the hub, ORG/NAME. Relative paths have it too, so look there first;
    those in runs/ are never names."""
    return _NAME.fullmatch(str(name)) is not None


@functools.cache
def fetched(name: str) -> Path:
    """The directory of a model of the hub in the hub's own cache; what isn't there yet is downloaded. A process asks once.

    Args:
        name: ORG/NAME.

    Raises:
        UserError: there is no such model, or it can't be fetched.
    """
    import huggingface_hub as hub  # takes a while; most models are directories

    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:  # of several libraries
        raise UserError(f"{name}: no such directory, {_reason(name, error)}") from None


def _reason(name: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    download = f"give a model directory; `hf download {name} --local-dir DIR` makes one where there is a network"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"and the Hugging Face hub wants a login: accept the terms at huggingface.co/{name} and run `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "and no such model on the Hugging Face hub; give a model directory, a run, or the right name (private models "
            "need `hf auth login`)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        partly = type(error).__name__ == "IncompleteSnapshotError"  # which older versions lack
        cache = "its cache holds " + ("only parts of the model" if partly else "no such model")
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE forbids asking the Hugging Face hub, and {cache}; unset it, or {download}"
        return (
            f"the Hugging Face hub can't be reached ({first_line(error.__cause__ or error)}), and {cache}; {download}"
        )
    return f"and the Hugging Face hub can't give it ({first_line(error)}); {download}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
