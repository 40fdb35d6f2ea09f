"""Figures as data: plain values that a static and an interactive drawing are made from, and that a result keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

COLOURS = ("#2a6f97", "#d1495b", "#3a7d44", "#e09f3e", "#6a4c93", "#1b998b", "#8d5524", "#6c757d")
"""For series, groups and categories, in this order; told apart by the colour-blind in their first five."""

Numbers: TypeAlias = Sequence[float] | np.ndarray | Tensor
"""One-dimensional."""
Grid: TypeAlias = Sequence[Sequence[float]] | np.ndarray | Tensor
"""Two-dimensional, row by row."""


@dataclass(frozen=True)
class Series:
    """Points or a curve."""

    name: str
    """In the legend; series of one name share an entry and a colour."""
    x: Numbers
    """Positions."""
    y: Numbers
    """Heights."""
    style: Literal["line", "points", "dashed", "both"] = "line"
    """How it is drawn; dashed is for theory."""
    low: Numbers | None = None
    """Lower edge of a band round the curve."""
    high: Numbers | None = None
    """Upper edge."""


@dataclass(frozen=True)
class Plot:
    """Curves over an axis."""

    title: str
    """Above the panel."""
    x: str
    """Axis label with unit."""
    y: str
    """Axis label with unit."""
    series: tuple[Series, ...]
    """What is drawn, first below."""
    log_x: bool = False
    """Logarithmic axis."""
    log_y: bool = False
    """Logarithmic axis."""
    levels: Mapping[str, float] | None = None
    """Named horizontal lines, such as the geometries."""
    kind: str = "plot"
    """Never set."""


@dataclass(frozen=True)
class Heatmap:
    """A matrix in colours: diverging about zero, or one colour a category."""

    title: str
    """Above the panel."""
    values: Grid
    """Rows from the top, or from the bottom where `y_at` is given."""
    x: str = ""
    """Axis label."""
    y: str = ""
    """Axis label."""
    limit: float = 1.0
    """Colours run from -limit to limit."""
    categories: tuple[str, ...] = ()
    """Names of the values 0, 1, 2...; then colours are categories."""
    halves: bool = False
    """Mark the middle row and column."""
    x_at: Numbers | None = None
    """Position of each column on a logarithmic axis."""
    y_at: Numbers | None = None
    """Position of each row on a logarithmic axis."""
    lines: tuple[Series, ...] = ()
    """Curves over it, in the units of x_at and y_at."""
    kind: str = "heatmap"
    """Never set."""


@dataclass(frozen=True)
class Arrows:
    """Directions in the plane, from the origin."""

    title: str
    """Above the panel."""
    ends: Grid
    """(arrows, 2)."""
    groups: Sequence[int] = ()
    """Colour of each arrow; empty: all alike."""
    kind: str = "arrows"
    """Never set."""


@dataclass(frozen=True)
class Stack:
    """Stacked bars: how much each part contributes to each bar."""

    title: str
    """Above the panel."""
    values: Grid
    """(bars, parts), non-negative."""
    x: str = "neuron"
    """What a bar is."""
    part: str = "feature"
    """What a part is."""
    y: str = "|weight|"
    """What the height is."""
    kind: str = "stack"
    """Never set."""


@dataclass(frozen=True)
class Scatter:
    """Points in the plane, one unit alike on both axes, such as a map of directions; a text shows on hovering.

    Raises:
        ValueError: not one hover text a point, or some groups but not one a point.
        TypeError: one of these has no length.
    """

    title: str
    """Above the panel."""
    points: Grid
    """(points, 2)."""
    hover: Sequence[str]
    """A text for each point, shown as it is: no markup."""
    groups: Sequence[int] | np.ndarray | Tensor = ()
    """Index into `categories` for each point; empty: all alike."""
    categories: tuple[str, ...] = ()
    """Names of the groups, in the legend; each is a colour."""
    x: str = ""
    """Axis label."""
    y: str = ""
    """Axis label."""
    written: bool = False
    """Write the text beside each point too: for a dozen points at most."""
    joined: bool = False
    """Join the points by a line, in their order and back to the first."""
    kind: str = "scatter"
    """Never set."""

    def __post_init__(self) -> None:
        for what, given in (("hover texts", self.hover), ("groups", self.groups)):
            if len(given) != len(self.points) and (what != "groups" or len(given)):
                raise ValueError(f"{self.title}: {len(given)} {what} for {len(self.points)} points")


Panel: TypeAlias = Plot | Heatmap | Arrows | Stack | Scatter


@dataclass(frozen=True)
class Figure:
    """Panels side by side under one caption."""

    name: str
    """File name without suffix."""
    caption: str
    """What is to be seen, in a sentence or two."""
    panels: tuple[Panel, ...]
    """From left to right, then down."""


def as_json(figure: Figure) -> dict[str, Any]:
    """Plain JSON values, numbers to five significant digits; NaN and infinity become null."""
    return _plain(asdict(figure, dict_factory=dict))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (np.ndarray, Tensor)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
