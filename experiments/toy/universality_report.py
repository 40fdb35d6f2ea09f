"""What U2 concludes and draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, at_least, at_most, interval, near
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome
from experiments.toy.boolean_plots import banded

LEARNED = ("trained", "frozen, gradient", "frozen, least squares", "linear layer")
LIMIT = {"and": 0.25, "xor": 0.5}
"""Least sup-norm error of an affine function."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """The random layer's error against the trained one's, at the same width and at twice the width."""
    by = {(c["gate"], c["width"]): result for c, result in zip(cells, found, strict=True)}
    wider = {gate: _over_trained(settings, by, gate, 1) for gate in LIMIT}
    same = {gate: _over_trained(settings, by, gate, 0) for gate in LIMIT}
    checks = tuple(check for gate in LIMIT for check in _checks(settings, by, gate, wider[gate]))
    told = "; ".join(
        f"{gate.upper()}: at the same width "
        + ", ".join(_said(ratio, f"d={d}") for d, ratio in zip(settings.widths, same[gate], strict=True))
        + ", at twice the width "
        + ", ".join(_said(r, f"d={2 * d}") for d, r in zip(settings.widths, wider[gate], strict=False))
        for gate in LIMIT
    )
    largest = {gate: by[gate, 0]["largest"][-1].mean() for gate in LIMIT}
    universal = all(check.passed for check in checks)
    verdict = "Yes: both are universal at initialisation" if universal else "Not by these numbers"
    conclusion = (
        f"{verdict}. Squared error of the random layer, with a least-squares read-off, over the trained network's for "
        f"{settings.inputs * (settings.inputs - 1) // 2} pairs. {told}. A read-off made of indicator functions needs "
        f"far more neurons: with d={settings.constructed[-1]} its largest error on rows with at most two ones is "
        f"{largest['and']:.2f} for AND and {largest['xor']:.2f} for XOR (affine functions: 1/4 and 1/2)."
    )
    return Outcome(conclusion, checks, (_figure(settings, by),))


def _over_trained(settings: Any, by: Mapping[Any, Mapping[str, Tensor]], gate: str, shift: int) -> list[Tensor]:
    """Error of the random layer over that of a trained one `shift` widths narrower, seed by seed."""
    wide, narrow = settings.widths[shift:], settings.widths[: len(settings.widths) - shift]
    return [by[gate, w]["frozen, least squares"] / by[gate, n]["trained"] for w, n in zip(wide, narrow, strict=True)]


def _said(ratio: Tensor, name: str) -> str:
    spread = interval(ratio)
    return f"{spread.mean:.2f} [{spread.low:.2f}, {spread.high:.2f}] ({name})"


def _checks(settings: Any, by: Mapping[Any, Mapping[str, Tensor]], gate: str, wider: list[Tensor]) -> tuple[Check, ...]:
    name, most = gate.upper(), settings.widths[-1]
    every = {key: torch.cat([by[gate, d][key] for d in settings.widths]) for key in by[gate, most]}
    pairs = settings.inputs * (settings.inputs - 1) // 2
    # Wider layers are so nearly collinear that gradient descent needs many more steps.
    ratios = [
        by[gate, d]["frozen, gradient"] / by[gate, d]["frozen, least squares"] for d in settings.widths if d < pairs
    ]
    logs = np.log(settings.constructed), by[gate, 0]["squared"].log().T.numpy()
    slopes = [np.polyfit(logs[0], curve, 1)[0] for curve in logs[1]]
    return (
        near(f"{name}, fair inputs: rms error of the affine read-off", by[gate, 0]["affine"], LIMIT[gate], 0.01),
        near(f"{name}, linear layer: error over affine", every["linear layer"], 1, 0.03),
        at_least(f"{name}, shuffled targets: share of the variance left", every["shuffled targets"], 0.95),
        near(f"{name}: read-off by gradient over least squares, d below the pairs", torch.cat(ratios), 1, 0.1),
        at_most(f"{name}, d={most}: random layer's error over affine", by[gate, most]["frozen, least squares"], 0.3),
        *(
            at_most(f"{name}: random layer with d={2 * d} over trained with d={d}", ratio, 2)
            for d, ratio in zip(settings.widths, wider, strict=False)
        ),
        near(f"{name}, constructed: slope of log squared error in log d", slopes, -1, 0.1),
        at_most(f"{name}, constructed, widest: largest error, <= 2 ones", by[gate, 0]["largest"][-1], LIMIT[gate]),
    )  # fmt: skip


def _figure(settings: Any, by: Mapping[Any, Mapping[str, Tensor]]) -> Figure:
    pairs = settings.inputs * (settings.inputs - 1) // 2
    narrow = [d for d in settings.widths if d < pairs]
    bound = Series("rank bound", narrow, [1 - d / pairs for d in narrow], "dashed")
    learned = [
        Plot(
            f"{gate.upper()}: squared error", "neurons d", "error / affine error",
            (*(banded(k, settings.widths, [by[gate, d][k] for d in settings.widths]) for k in LEARNED), bound),
            log_y=True,
        )
        for gate in LIMIT
    ]  # fmt: skip
    curves = [banded(g.upper(), settings.constructed, list(by[g, 0]["largest"])) for g in LIMIT]
    levels = {"affine AND": LIMIT["and"], "affine XOR": LIMIT["xor"]}
    constructed = Plot(
        "constructed read-off: rows with at most 2 ones", "neurons d", "largest |error|", tuple(curves),
        log_x=True, log_y=True, levels=levels,
    )  # fmt: skip
    caption = (
        f"Error of all {pairs} pairs against the width, over the best affine function's, for a trained and a random "
        "layer (95% bands over seeds); right, the read-off built from indicator functions of the weights' signs."
    )
    return Figure("random-and-trained", caption, (*learned, constructed))
