"""What the command line turns into a one-line message and exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: what is wrong, where, and what to do, in one line."""


class BrokenImage(UserError):
    """An image file is damaged, or is none: no setting would help, so that what reads many goes on without it."""


def suggestion(name: str, known: Iterable[str], otherwise: str | None = None, cutoff: float = 0.6) -> str:
    """What to say of a name that is unknown: `did you mean 'x'?`, or where nothing is like it `known: a, b`.

    Args:
        otherwise: what to say in place of the list.
        cutoff: how like it a name must be, 0 to 1.
    """
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise
