"""Static drawings of figures, for papers: one SVG a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from experiments.figures import COLOURS

_COLUMNS = 4
_INSIDE = 5
"""Curves named inside a panel at most: a longer list hides some of them, and stands below."""
_SIZES = {"plot": (4.4, 3.4), "heatmap": (3.2, 3.2), "arrows": (2.6, 2.8), "stack": (4.0, 3.0), "scatter": (4.4, 4.4)}


def draw(figure: Mapping[str, Any], path: Path) -> None:
    """Write a figure (as `figures.as_json` gives it) to an SVG file, always to the same bytes."""
    panels = figure["panels"]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = max(_SIZES[panel["kind"]][0] for panel in panels)
    height = max(_SIZES[panel["kind"]][1] for panel in panels)
    canvas = Canvas(figsize=(width * columns, height * rows), layout="constrained")
    for at, panel in enumerate(panels):
        axes = canvas.add_subplot(rows, columns, at + 1)
        axes.set_title(panel["title"], fontsize=9)
        _DRAW[panel["kind"]](axes, panel)
    with mpl.rc_context({"svg.hashsalt": figure["name"]}):
        canvas.savefig(path, metadata={"Date": None})


def _numbers(values: Any) -> np.ndarray:
    return np.array(values, float)  # null becomes NaN


def _plot(axes: Axes, panel: Mapping[str, Any]) -> None:
    axes.set(xlabel=panel["x"], ylabel=panel["y"])
    axes.set_xscale("log" if panel["log_x"] else "linear")
    axes.set_yscale("log" if panel["log_y"] else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    for name, height in (panel["levels"] or {}).items():
        axes.axhline(height, color="0.8", linewidth=0.8, zorder=0)
        axes.annotate(name, (1, height), xycoords=("axes fraction", "data"), fontsize=7, color="0.45", va="center")
    names = _series(axes, panel["series"])
    for axis, logarithmic in ((axes.xaxis, panel["log_x"]), (axes.yaxis, panel["log_y"])):
        if logarithmic:
            _label_short(axis)
    if not panel["log_x"] and all(_is_whole(x) for one in panel["series"] for x in one["x"]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # what is counted lies at whole numbers
    if names and len(names) <= 12:
        below: dict[str, Any] = (
            {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2} if len(names) > _INSIDE else {}
        )
        axes.legend(fontsize=7, frameon=True, framealpha=0.8, edgecolor="none", **below)


def _is_whole(x: float | None) -> bool:
    return x is None or float(x).is_integer()


def _label_short(axis: Axis) -> None:
    """On a logarithmic axis of less than two decades label 1, 2 and 5: powers of ten alone are too few."""
    low, high = axis.get_view_interval()
    if high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _series(axes: Axes, series: list[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(one["name"] for one in series))
    seen: set[str] = set()
    for one in series:
        style = {"line": "-", "dashed": "--", "both": "-o", "points": "o"}[one["style"]]
        dashed = one["style"] == "dashed"
        colour = "0.25" if dashed else COLOURS[names.index(one["name"]) % len(COLOURS)]
        label = None if one["name"] in seen or not one["name"] else one["name"]
        seen.add(one["name"])
        x, y = _numbers(one["x"]), _numbers(one["y"])
        axes.plot(x, y, style, color=colour, label=label, markersize=2.5, linewidth=1.3)
        if one["low"] is not None:
            axes.fill_between(x, _numbers(one["low"]), _numbers(one["high"]), color=colour, alpha=0.2, linewidth=0)
    return [name for name in names if name]


def _heatmap(axes: Axes, panel: Mapping[str, Any]) -> None:
    values, categories = _numbers(panel["values"]), panel["categories"]
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -panel["limit"], "vmax": panel["limit"]}
    if categories:
        colours = {"cmap": ListedColormap(COLOURS[: len(categories)]), "vmin": -0.5, "vmax": len(categories) - 0.5}
    if panel["x_at"] is None:
        image: Any = axes.imshow(values, interpolation="nearest", aspect="auto", **colours)
        axes.set(xticks=[], yticks=[])
    else:
        x, y = _numbers(panel["x_at"]), _numbers(panel["y_at"])
        axes.set(xscale="log", yscale="log")
        image = axes.pcolormesh(x, y, values, shading="nearest", rasterized=True, **colours)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=panel["x"], ylabel=panel["y"])
    if panel["halves"]:
        axes.axhline(len(values) / 2 - 0.5, color="0.2", linewidth=0.8)
        axes.axvline(values.shape[1] / 2 - 0.5, color="0.2", linewidth=0.8)
    _series(axes, panel["lines"])
    if not categories:
        axes.figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
        return
    patches = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, categories, strict=False)]
    handles = [*patches, *axes.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _arrows(axes: Axes, panel: Mapping[str, Any]) -> None:
    ends = _numbers(panel["ends"]).reshape(-1, 2)
    groups = panel["groups"] or [0] * len(ends)
    start = np.zeros(len(ends))
    colours = [COLOURS[group % len(COLOURS)] for group in groups]
    size: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.012}
    axes.quiver(start, start, ends[:, 0], ends[:, 1], color=colours, **size)
    limit = 1.15 * max(1.0, float(np.abs(ends).max(initial=0)))
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])


def _stack(axes: Axes, panel: Mapping[str, Any]) -> None:
    values = _numbers(panel["values"])
    bottom = np.zeros(len(values))
    for part in range(values.shape[1]):
        colour = mpl.colormaps["viridis"](part / max(1, values.shape[1] - 1))
        axes.bar(range(len(values)), values[:, part], bottom=bottom, color=colour, edgecolor="white", linewidth=0.2)
        bottom += values[:, part]
    axes.set(xlabel=panel["x"], ylabel=f"{panel['y']}, by {panel['part']}")
    axes.spines[["top", "right"]].set_visible(False)


def _scatter(axes: Axes, panel: Mapping[str, Any]) -> None:
    points = _numbers(panel["points"]).reshape(-1, 2)
    groups = np.array(panel["groups"] or [0] * len(points))
    if panel["joined"]:
        ring = np.concatenate([points, points[:1]])
        axes.plot(*ring.T, color="0.8", linewidth=0.8, zorder=0)
    size = 4 if len(points) > 200 else 16
    for group in np.unique(groups):
        label = panel["categories"][group] if panel["categories"] else None
        x, y = points[groups == group].T
        axes.scatter(x, y, s=size, linewidths=0, color=COLOURS[group % len(COLOURS)], label=label)
    for text, (x, y) in zip(panel["hover"] if panel["written"] else [], points, strict=False):
        axes.annotate(text, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7, parse_math=False)
    axes.set(xlabel=panel["x"], ylabel=panel["y"], xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.15 if panel["written"] else 0.05)
    if panel["categories"]:
        axes.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, markerscale=1.5
        )


_DRAW = {"plot": _plot, "heatmap": _heatmap, "arrows": _arrows, "stack": _stack, "scatter": _scatter}
