"""What U3 concludes and draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from experiments.checks import Check, above, at_least, at_most, near
from experiments.figures import Figure, Plot
from experiments.registry import Outcome
from experiments.toy.boolean_plots import banded
from toolkit.boolean import GATES

ANSWERS = ("trained", "affine read-off")


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """The error grows with the compression; without it, it is about that of the bare inputs."""
    by = {(c["gate"], c["dims"]): result for c, result in zip(cells, found, strict=True)}
    compression = [settings.inputs / d for d in settings.dims]
    told = {
        gate: ", ".join(
            f"{by[gate, d]['trained'][0].mean():.2f} at {c:.3g}"
            for c, d in zip(compression, settings.dims, strict=True)
        )
        for gate in GATES
    }
    last = by["and", settings.dims[-1]]
    gain = (1 - last["trained"] / last["affine read-off"]).mean()
    conclusion = (
        f"Squared error over that of the best affine function of the bare inputs, by compression, at "
        f"p={settings.densities[0]:g} with d={settings.width}: AND {told['and']}; XOR {told['xor']}. The cost of "
        f"superposed inputs grows with the compression; at {compression[-1]:.3g} inputs a dimension the hidden layer "
        f"still takes {gain:.0%} off the affine error of AND on the same inputs."
    )
    checks = tuple(check for gate in GATES for check in _checks(settings, by, gate))
    return Outcome(conclusion, checks, (_figure(settings, by, compression),))


def _checks(settings: Any, by: Mapping[Any, Mapping[str, Tensor]], gate: str) -> list[Check]:
    name = gate.upper()
    trained, affine, shuffled = (
        torch.stack([by[gate, d][key] for d in settings.dims]).flatten(1)  # (dims, densities x seeds)
        for key in ("trained", "affine read-off", "shuffled targets")
    )
    rise = [spearmanr([-d for d in settings.dims], curve).statistic for curve in trained.T]
    bare = by[gate, 0]["trained"].flatten()
    return [
        near(f"{name}, compression 1: affine read-off over the closed form", affine[0], 1, 0.03),
        # Not equal: the directions are rotated, and Adam is not invariant to rotations.
        at_most(f"{name}, compression 1: error over that of the bare inputs", trained[0] / bare, 2),
        at_least(f"{name}, compression 1: affine error over ours", affine[0] / trained[0], 3),
        at_least(f"{name}: rank correlation of error with compression, every density and seed", rise, 0.9),
        above(f"{name}, most compressed: share of the affine error that goes", 1 - trained[-1] / affine[-1], 0.1),
        at_least(f"{name}, shuffled targets: share of the variance left", shuffled.flatten(), 0.95),
    ]


def _figure(settings: Any, by: Mapping[Any, Mapping[str, Tensor]], compression: list[float]) -> Figure:
    panels = tuple(
        Plot(
            f"{gate.upper()}, p={p:g}", "inputs per dimension", "error / affine error, bare inputs",
            tuple(banded(k, compression, [by[gate, d][k][i] for d in settings.dims]) for k in ANSWERS), log_y=True,
        )
        for gate in GATES for i, p in enumerate(settings.densities)
    )  # fmt: skip
    caption = "Error of all pairs against the compression of the inputs (95% bands over seeds and directions)."
    return Figure("error-by-compression", caption, panels)
