"""Mistakes a user can mend: one clear line and exit code 2; every other exception keeps its traceback."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from inspect import signature
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


class UserError(ValueError):
    """What went wrong, where, what was expected and what to do, in one line."""

    def __init__(self, message: str) -> None:
        # A name or path that the message quotes may hold line breaks.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class DivergenceError(UserError):
    """Training met a loss that is not a number."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"training of {what} diverged: its loss is not finite at step {step}; try a smaller learning rate"
        )
        self._given = what, step

    def __reduce__(self) -> tuple[Any, ...]:  # from worker processes
        return DivergenceError, self._given


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


_KINDS = {
    int: (Integral, "a whole number of 64 bits"),
    float: (Real, "a number"),
    str: (str, "text"),
    bool: (bool, "True or False"),
}


def check_types(settings: Any) -> None:
    """Refuse a dataclass's fields that are no number, text, choice or tuple of these where the annotation asks for one.

    Fields with any other annotation are not looked at.

    Raises:
        UserError: the first such field, with what was expected; of a choice the nearest.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if _fits(value, field.type):
            continue
        if get_origin(field.type) is Literal and isinstance(value, str):
            raise unknown(field.name, value, get_args(field.type))
        raise UserError(f"{field.name} must be {_said(field.type)}, got {_shown(value)}")


def check_parameters(estimator: Any) -> None:
    """The same for what a scikit-learn estimator was made with, by the annotations of its constructor.

    Raises:
        UserError: the first parameter that is no number, text or choice where one is asked for.
    """
    for name, parameter in signature(type(estimator)).parameters.items():
        value, asked = getattr(estimator, name), parameter.annotation
        require(_fits(value, asked), f"{name}={_shown(value)}: expected {_said(asked)}")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:80] + "..."


def _fits(value: Any, annotation: Any) -> bool:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (int, float) and isinstance(value, Integral):
        return not isinstance(value, bool) and -(2**63) <= int(value) < 2**63  # what arrays hold
    if annotation in _KINDS:
        return isinstance(value, _KINDS[annotation][0])
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in args)
    if origin is tuple and isinstance(value, tuple):
        each = [args[0]] * len(value) if args[-1] is ... else args
        return len(value) == len(each) and all(map(_fits, value, each))
    if annotation is type(None) or origin is tuple:
        return value is None and origin is None
    return not is_dataclass(annotation) or isinstance(value, annotation)  # type: ignore[arg-type]


def _said(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in _KINDS:
        return _KINDS[annotation][1]
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin in (Union, UnionType):
        return " or ".join(map(_said, args))
    if origin is tuple:
        return f"a tuple of {', '.join(_said(one).removeprefix('a ') for one in args if one is not ...)}"
    return str(getattr(annotation, "__name__", annotation)).replace("NoneType", "None")
