"""The errors a user can act on: a command prints their one line and exits with code 2."""


class UserError(ValueError):
    """A setting or a file that cannot work. The message is one line: what, found, expected."""


class DataError(UserError):
    """A file or data set that cannot be used. The message is one line and names it."""
