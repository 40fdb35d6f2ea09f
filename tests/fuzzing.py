"""Hostile values drawn from annotations, for the fuzz tests, and the classes whose fields are drawn so."""

import collections.abc
import dataclasses
import importlib
import inspect
import math
import os
import pkgutil
import types
import typing
from functools import cache

import jaxtyping
import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
"""Draws of each test; the same ones in every run. A larger number searches further."""
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

FLOORS = ("toolkit", "controls", "experiments")
HUGE = 10**400  # no float holds it
WHOLE = st.sampled_from([-HUGE, -(2**63), -1, 0, 1, 2, 3, 8, 2**31 - 1, 2**31, 2**63, HUGE]) | st.integers(-3, 70)
REAL = (
    st.sampled_from([-math.inf, -1.0, -0.0, 5e-324, 1e-9, 0.5, 1.0, 1.0 + 1e-9, 1e38, 1e300, math.inf, math.nan])
    | st.floats(0, 1)
    | WHOLE
)
NAMES = ["relu", "linear", "topk", "topk-0", "topk-²", "cpu", "trained", "quick", "blocks.0.hook_resid_post", "0:3"]
NAMES += ["", " ", "a\nb", "../x", "naïve ☃", "\x00", "-1", "٣", "²", ",", "=", ":", "a" * 300]
TEXT = st.sampled_from(NAMES) | st.text(max_size=6)
_ARRAYS = (np.ones(2), np.float32(2), torch.ones(2), torch.tensor(1.0))
WRONG = st.sampled_from(
    [None, "3", "", b"3", 1 + 2j, math.nan, (), (1, "a"), {"a": 1}, {1}, [[1]], object(), int, *_ARRAYS]
)
"""Values of types that no plain setting has."""
_PLAIN = {int: WHOLE, float: REAL, str: TEXT, bool: st.booleans(), type(None): st.none()}


def is_plain(annotation):
    """Whether a value can be typed in: a number, a word, a choice, several of them, or a class that is made of them."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal or annotation in _PLAIN:
        return True
    if origin in (tuple, typing.Union, types.UnionType):
        return all(is_plain(arg) for arg in args if arg is not ...)
    return dataclasses.is_dataclass(annotation) and all(map(is_plain, types_of(annotation)))


def types_of(cls):
    """The annotations of a dataclass's fields."""
    return [field.type for field in dataclasses.fields(cls)]


def values(annotation):
    """A strategy for values of an annotation, the hostile among them."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is typing.Literal:
        return st.sampled_from(args) | TEXT
    if origin is tuple and args[-1] is ...:
        return st.lists(values(args[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin in (collections.abc.Mapping, dict):
        return st.dictionaries(TEXT, values(args[1]), max_size=3)
    if origin is collections.abc.Sequence:
        return st.lists(values(args[0]), max_size=4)
    if _is_array(annotation):
        return _arrays(annotation)
    if dataclasses.is_dataclass(annotation):
        return made(annotation)
    return st.sampled_from([len, lambda *_: None, torch.sin])


def _arrays(annotation):
    """Arrays of the annotation's kind and number of axes, or of other ones, with entries that are not finite."""
    of_numpy = annotation.array_type is np.ndarray
    axes = st.lists(st.integers(0, 4), min_size=len(annotation.dims), max_size=len(annotation.dims))
    entries = st.lists(st.sampled_from([0.0, 1.0, -2.0, 3.5, 1e38, math.inf, math.nan]), min_size=1, max_size=3)
    kinds = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
    own = next((kind for name, kind in kinds.items() if name in str(annotation.dtypes)), torch.float32)
    dtype = st.sampled_from([own] * 4 + [torch.float16, torch.float64, torch.int32, torch.bool, torch.complex64])

    def build(shape, filling, kind):
        flat = torch.tensor(filling, dtype=torch.float64).repeat(math.prod(shape) or 1)[: math.prod(shape)]
        finite = flat if kind.is_floating_point else flat.nan_to_num(posinf=7, neginf=-7).clamp(-9, 9)
        array = finite.to(kind).reshape(shape)
        return array.numpy() if of_numpy else array

    return st.builds(build, axes | st.lists(st.integers(0, 3), max_size=3), entries, dtype)


def _can_be_wrong(annotation):
    """Whether a value of another type is a mistake of the user's: of numbers, words and arrays, not of functions."""
    return is_plain(annotation) or any(map(_is_array, (annotation, *typing.get_args(annotation))))


def _is_array(annotation):
    return inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)


def _is_protocol(annotation):
    return bool(getattr(annotation, "_is_protocol", False)) and annotation.__module__.split(".")[0] in FLOORS


@st.composite
def fields_of(draw, cls, *, hostile=2):
    """Arguments for a dataclass: its defaults, some replaced; the few that have none are always drawn."""
    drawn = {}
    own = [field for field in dataclasses.fields(cls) if field.init]
    names = [field.name for field in own]
    changed = draw(st.lists(st.sampled_from(names), max_size=hostile, unique=True)) if names else []
    for field in own:
        if field.name in changed:
            kinds = [values(field.type)] * 3 + [WRONG] * _can_be_wrong(field.type)
            drawn[field.name] = draw(draw(st.sampled_from(kinds)))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            drawn[field.name] = draw(tame(field.type))
    return drawn


def tame(annotation):
    """Values that most settings take."""
    words = st.sampled_from(["trained", "a", "relu", "mean"])
    return {int: st.integers(1, 20), float: st.floats(0.01, 1), str: words}.get(annotation, values(annotation))


def assert_one_line(message):
    """A message in one line that is not empty."""
    assert message.strip()
    assert len(message.splitlines()) == 1


@st.composite
def made(draw, cls):
    """An instance of a dataclass, or None where what was drawn is refused."""
    try:
        return cls(**draw(fields_of(cls)))
    except (ValueError, TypeError):
        return None


@cache
def public_classes(floor):
    """The public classes that a package's modules define."""
    package = importlib.import_module(floor)
    names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{floor}.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return [
        value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def settings_classes(floor):
    """Frozen dataclasses that users make: those that check what they are given, or consist of plain values.

    The others are what the program makes: results, or whatever holds a running network.
    """
    frozen = [cls for cls in public_classes(floor) if dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen]
    checking = [cls for cls in frozen if hasattr(cls, "__post_init__") and not inspect.isabstract(cls)]
    checking = [cls for cls in checking if not any(map(_is_protocol, types_of(cls)))]
    return checking + [cls for cls in frozen if cls not in checking and is_plain(cls)]


def estimators(floor):
    """Classes in scikit-learn's manner that can be fitted."""
    found = [cls for cls in public_classes(floor) if issubclass(cls, BaseEstimator)]
    return [cls for cls in found if not any(cls in other.__mro__[1:] for other in found)]
