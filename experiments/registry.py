"""What an experiment is, and the one list of all of them."""

import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from experiments.checks import Check
from experiments.figures import Figure
from toolkit.errors import unknown
from toolkit.sweep import Cell, Measured

SCALES = ("smoke", "default", "paper")
"""Seconds, for tests; minutes on two cores; the source's own size."""

_FOLDERS = ("toy", "embedding", "network")
_LETTERS = "TCUSEN"
_ALL: dict[str, "Experiment"] = {}


@dataclass(frozen=True)
class Outcome:
    """What an experiment found."""

    conclusion: str
    """The answer to its question in a sentence or two, with the measured numbers."""
    checks: tuple[Check, ...]
    """Claims, each passed or failed."""
    figures: tuple[Figure, ...] = ()
    """What to look at."""
    metrics: Mapping[str, Any] | None = None
    """Further numbers, as plain JSON values."""
    tensors: Mapping[str, Tensor] | None = None
    """Weights and curves worth keeping."""
    table: str = ""
    """Lines to be printed below the checks, where an answer is a table."""


@dataclass(frozen=True)
class Experiment:
    """One question, how it is answered and what the answer should be.

    Raises:
        ValueError: settings or seconds for other scales than SCALES.
    """

    name: str
    """Unique, in lower case with hyphens."""
    row: str
    """Its row in the list of results: T1, C2 and so on; decides the order."""
    question: str
    """What is asked."""
    claim: str
    """What the source says, in one line."""
    source: str
    """Paper or post, and section."""
    controls: tuple[str, ...]
    """What is run beside it, with one ingredient changed, so that the effect can be told from an artefact."""
    scales: Mapping[str, Any]
    """Settings, a frozen dataclass, for each of SCALES."""
    seconds: Mapping[str, float]
    """How long each scale takes on two cores, or on the machine that its docstring names; rows E and N at scale default
    with tiny-gpt2, E1 to E4 at scale paper with an embedding of 49,152 x 576."""
    cells: Callable[[Any], Sequence[Cell]]
    """settings -> the cells."""
    measure: Callable[[Any, Cell, int], Measured]
    """(settings, cell, seed) -> what the cell yields; a function of these three alone."""
    summarise: Callable[[Any, Sequence[Cell], Sequence[Measured]], Outcome]
    """(settings, cells, what each yielded) -> the outcome; quick, trains nothing."""
    broken: Any
    """Smoke settings with the effect taken away: a test sees that checks then fail."""
    group: str = "toy"
    """The folder it lives in."""
    lacks: Callable[[Any], str] = lambda settings: ""
    """settings -> what its model does not have and it cannot do without, such as checkpoints, in one line; else ""."""

    def __post_init__(self) -> None:
        for given, what in ((self.scales, "settings"), (self.seconds, "seconds")):
            if set(given) != set(SCALES):
                raise ValueError(f"experiment {self.name}: {what} must be given for {SCALES}, got {tuple(given)}")

    def settings(self, scale: str) -> Any:
        """The settings of a scale.

        Raises:
            UserError: there is no such scale.
        """
        if scale not in self.scales:
            raise unknown("scale", scale, SCALES)
        return self.scales[scale]

    def takes(self, setting: str) -> bool:
        """Whether its settings have this field, such as `model`."""
        return all(hasattr(settings, setting) for settings in self.scales.values())

    def needs_model(self, scale: str) -> bool:
        """Whether it must be given a model: it takes one and this scale, not planting its own, names none."""
        return scale != "smoke" and self.takes("model") and not self.settings(scale).model

    def needs_corpus(self, scale: str, model: str) -> bool:
        """Whether it must be given text; scale smoke writes its own, unless it is given a model."""
        return self.takes("corpus") and (scale != "smoke" or bool(model))


def register(experiment: Experiment) -> Experiment:
    """Enter an experiment into the list.

    Raises:
        ValueError: the name or the row is taken.
    """
    for other in _ALL.values():
        if other.name == experiment.name or other.row == experiment.row:
            taken = f"{experiment.name!r} ({experiment.row}) meets {other.name!r} ({other.row})"
            raise ValueError(f"experiments have names and rows of their own: {taken}")
    _ALL[experiment.name] = experiment
    return experiment


def experiments() -> list[Experiment]:
    """Every experiment, in the order of the rows."""
    for folder in _FOLDERS:
        package = importlib.import_module(f"experiments.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"experiments.{folder}.{module.name}")
    return sorted(_ALL.values(), key=lambda e: (_FOLDERS.index(e.group), *place(e.row)))


def place(row: str) -> tuple[int, int]:
    """Where a row such as T1 or E4 stands in lists; an unknown letter comes first."""
    return _LETTERS.find(row[0]), int(row[1:])


def chosen(patterns: Sequence[str]) -> list[Experiment]:
    """The experiments that names or patterns (`toy/*`, `all`) mean, each once, in the order of the list.

    Raises:
        UserError: a name or pattern means none (the nearest name is suggested).
    """
    known = experiments()
    wanted: set[str] = set()
    for pattern in patterns:
        names = [e.name for e in known if _means(pattern, e)]
        if not names:
            raise unknown("experiment", pattern, [e.name for e in known])
        wanted |= set(names)
    return [e for e in known if e.name in wanted]


def named(names: Sequence[str], experiment: Experiment) -> bool:
    """Whether it is asked for by its own name, not by a pattern that others share."""
    return bool({experiment.name, f"{experiment.group}/{experiment.name}"} & set(names))


def _means(pattern: str, experiment: Experiment) -> bool:
    full = f"{experiment.group}/{experiment.name}"
    return pattern == "all" or any(fnmatch.fnmatchcase(name, pattern) for name in (experiment.name, full))
