"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    `message` says what is wrong, in words of the user's world; `fix` says what to do about it and may be
    empty. The command line prints `str(error)` and ends with exit code 1, never with a traceback.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message
