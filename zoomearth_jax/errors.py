"""What the command line turns into a one-line message and exit code 2."""


class UserError(Exception):
    """Bad input: what is wrong, where, and what to do, in one line."""


class BrokenImage(UserError):
    """An image file is damaged, or is none: no setting would help, so that what reads many goes on without it."""
