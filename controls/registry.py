"""The controls by name: each is one function, a case in and outcomes out, with what it asks stated beside it.

@control("weights.spectrum", null="architecture, data and the spectrum of each matrix explain the score")
def spectrum(case: Case) -> list[Outcome]:
    ...
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from controls.case import Case
from controls.outcomes import Outcome
from toolkit.errors import unknown

MODULES = (
    "controls.label_nulls",
    "controls.label_searches",
    "controls.input_nulls",
    "controls.weight_nulls",
    "controls.finder_nulls",
    "controls.perturbations",
    "controls.steering_nulls",
    "controls.noise_property",
)
"""Files that hold controls; a new one earns its line here."""
Run = Callable[[Case], list[Outcome]]
"""What a control does."""


@dataclass(frozen=True)
class Control:
    """One control."""

    name: str
    """Ingredient and kind, such as labels.shift."""
    null: str
    """The null hypothesis it tests, in words."""
    mind: str
    """What to keep in mind when reading it."""
    dear: bool
    """Whether each draw costs a network or a training, so that an audit takes few."""
    run: Run
    """The function."""


_CONTROLS: dict[str, Control] = {}


def control(name: str, *, null: str, mind: str = "", dear: bool = False) -> Callable[[Run], Run]:
    """Register a function under a name.

    Raises:
        ValueError: the name is taken.
    """

    def register(run: Run) -> Run:
        if name in _CONTROLS:
            raise ValueError(f"control {name!r} is registered twice: {_CONTROLS[name].run.__module__} has it")
        _CONTROLS[name] = Control(name, null, mind, dear, run)
        return run

    return register


def controls() -> dict[str, Control]:
    """All controls by name, in the order of the files."""
    for module in MODULES:
        importlib.import_module(module)
    return dict(_CONTROLS)


def find(name: str) -> Control:
    """The control of that name.

    Raises:
        UserError: there is none; the nearest names are told.
    """
    found = controls()
    if name not in found:
        raise unknown("control", name, found)
    return found[name]
