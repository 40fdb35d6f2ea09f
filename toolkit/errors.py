"""Mistakes a user can mend: one clear line and exit code 2; every other exception keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What went wrong, where, what was expected and what to do, in one line."""


class DivergenceError(UserError):
    """Training met a loss that is not a number."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"training of {what} diverged: its loss is not finite at step {step}; try a smaller learning rate"
        )


def unknown(kind: str, given: str, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among `valid`, with the nearest valid one suggested."""
    names = list(valid)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {given!r}: {hint}valid: {', '.join(names)}")


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` with `message` unless the condition holds."""
    if not condition:
        raise UserError(message)
