"""The one exception that the command line turns into a one-line message and exit code 2."""


class UserError(Exception):
    """Bad input: what is wrong, where, and what to do, in one line."""
