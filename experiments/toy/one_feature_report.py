"""What T5's sweeps show: where the geometry jumps, how far, and between which shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from experiments.checks import Check, at_least, share
from experiments.figures import Arrows, Figure, Plot, Series
from experiments.registry import Outcome


def jump(x: np.ndarray, norms: np.ndarray, losses: np.ndarray) -> tuple[int, float, float]:
    """(i, size, kink): the norm jumps between points i and i + 1, by `size` median steps; the slope by `kink` of them.

    The slope of the best loss jumps where two branches cross, since each has a smooth one (the envelope theorem).
    """
    steps = np.abs(np.diff(norms))
    at = int(steps.argmax())
    slopes = np.diff(losses) / np.diff(x)
    typical = np.abs(np.diff(np.delete(slopes, at)))
    # Without the interval of the crossing, its neighbours stand at at - 1 and at.
    inner = 0 < at < len(slopes) - 1
    kink = typical[at - 1] / np.median(np.delete(typical, at - 1)) if inner else 0.0
    return at, steps[at] / max(np.median(np.delete(steps, at)), 1e-9), kink


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Where each sweep jumps, how far, and between which shapes."""
    checks: list[Check] = []
    plots, arrows, said = [], [], []
    for varied in ("importance", "density"):
        sweeps = [r for cell, r in zip(cells, found, strict=True) if cell["varied"] == varied]
        x = sweeps[0]["x"].numpy()
        jumps = [jump(x, r["norms"].numpy(), r["loss"].numpy()) for r in sweeps]
        sides = [(r["shape"][at], r["shape"][at + 1]) for r, (at, _, _) in zip(sweeps, jumps, strict=True)]
        checks += [
            at_least(f"{varied}: largest step of the squared norm, in median steps", [j[1] for j in jumps], 10),
            at_least(f"{varied}: bend of the best loss there, in median bends", [j[2] for j in jumps], 3),
            share(f"{varied}: two digons before the jump, a pentagon after", [s == (0, 1) for s in sides], 1),
        ]
        panel: dict[str, Any] = {"x": f"{varied} of one feature", "log_x": varied == "density"}
        norms = tuple(Series("one sweep", x, r["norms"], "both") for r in sweeps)
        plots += [
            Plot("squared norm of the varied feature", y="‖W₀‖²", series=norms, **panel),
            Plot(
                "loss of the best seed",
                y="loss",
                series=tuple(Series("", x, r["loss"], "both") for r in sweeps),
                **panel,
            ),
        ]
        at, first = jumps[0][0], sweeps[0]
        arrows += [Arrows(f"{varied} {x[i]:.3g}", first["W"][i].T, groups=(1, 0, 0, 0, 0)) for i in (at, at + 1)]
        low, high = min(x[j[0]] for j in jumps), max(x[j[0] + 1] for j in jumps)
        before, after = (np.mean([r["norms"][j[0] + s] for r, j in zip(sweeps, jumps, strict=True)]) for s in (0, 1))
        shown = np.mean([s == (0, 1) for s in sides])
        said.append(
            f"{varied} between {low:.3g} and {high:.3g} (squared norm from {before:.3g} to {after:.3g}; two digons "
            f"before and a pentagon after in {shown:.0%} of sweeps)"
        )
    conclusion = f"The varied feature's squared norm takes its largest step at {'; '.join(said)}."
    caption = "Best of the seeds at each value. The varied feature, red, is absent on one side of the jump."
    return Outcome(conclusion, tuple(checks), (Figure("jump", caption, (*plots, *arrows)),))
