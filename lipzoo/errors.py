"""Mistakes that a user can mend."""


class UserError(Exception):
    """What went wrong and what to do, in one sentence. Command lines print it and exit with status 2."""
