"""Mistakes that a user can mend, and what a user has asked for by a signal."""


class UserError(Exception):
    """What went wrong and what to do, in one sentence. Command lines print it and exit with status 2."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; the message says what is saved. Command lines print it and exit with 128 + `number`."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number
