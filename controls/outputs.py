"""The outputs of the rest of a network, clean and moved, as seen from each feature's target."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.directions import without
from controls.subject import Subject

BLOCK = 4096
"""Rows that the rest of the network is asked about at a time, at most."""
NUMBERS = 2**25
"""Outputs computed at a time, at most: a vocabulary makes for few rows."""
COLUMNS = 4096
"""Outputs whose variance is taken at a time."""


@dataclass(frozen=True)
class Outputs:
    """The clean outputs at the places, each in its unit."""

    scale: Float[Tensor, " outputs"]
    """1 / standard deviation, 0 for outputs that never change; or the subject's own weights."""
    clean: Float[Tensor, "places outputs"]
    """Outputs times `scale`, less their mean."""
    mean: Float[Tensor, " outputs"]
    """That mean."""

    @property
    def block(self) -> int:
        """Rows to ask about at a time."""
        return int(np.clip(NUMBERS // max(1, len(self.scale)), 16, BLOCK))


@dataclass(frozen=True)
class Target:
    """Where a feature is looked for in the outputs; movements along it are counted as correlations.

    A movement from label 0 to 1 in units of the target's spread, times sqrt(p (1 - p)), is the correlation of label and
    target that it brings about.
    """

    along: Float[Tensor, " outputs"]
    """Of length 1: an output, or the way that outputs differ with the label, other labels fixed."""
    aside: Float[Tensor, " outputs"]
    """What of that way is across the target, of length 1 or 0: it counts neither on nor off target."""
    factor: float
    """sqrt(p (1 - p))."""
    spread: float
    """Standard deviation over rows of the clean outputs along the target."""
    gap: float
    """Correlation with the label, other labels fixed, that the data show: to be brought about or explained."""
    gap_error: float
    """Its standard error, by documents."""
    variance: float
    """Of all outputs together, over rows: how many there are, where each has a variance of 1."""
    step: float
    """What a movement of any outputs is counted in: each one's spread, or the target's where outputs have weights."""

    def on(self, movement: Float[Tensor, "*some outputs"]) -> Float[Tensor, "*some"]:
        """Along the target, signed."""
        return movement @ self.along * (self.factor / max(self.spread, 1e-12))

    def off(self, movement: Float[Tensor, "*some outputs"]) -> Float[Tensor, "*some"]:
        """What is left in the outputs, as a share of their spread."""
        left = movement - (movement @ self.along)[..., None] * self.along
        left = left - (movement @ self.aside)[..., None] * self.aside
        return (left.square().sum(-1) / max(self.variance, 1e-30)).sqrt() * self.factor


@torch.no_grad()
def clean_outputs(subject: Subject) -> Outputs:
    """Run the rest of the network at every place."""
    places = torch.from_numpy(subject.places)
    values = run(subject, subject.activations[places], torch.arange(len(places)))
    if subject.weigh is None:
        sd = values.std(0)
        scale = torch.where(sd > 1e-9 * sd.max(), 1 / sd.clamp(min=1e-30), 0.0)
    else:
        scale = subject.weigh(values).double()
    mean = values.mean(0) * scale
    clean = values * scale - mean
    return Outputs(scale, clean, mean)


def target(
    subject: Subject, outputs: Outputs, feature: int, others: list[int], units: Int[np.ndarray, " places"]
) -> Target:
    """Of a feature, with the labels held fixed that its direction holds fixed."""
    Y = subject.table[subject.places]
    y = torch.from_numpy(
        without(Y[:, [feature, *others]], [list(range(1, 1 + len(others)))] + [[]] * len(others))[:, 0]
    )
    gap = y @ outputs.clean / y.square().sum().clamp(min=1e-12)  # (outputs,), by least squares
    way = gap / gap.norm().clamp(min=1e-30)
    named = subject.targets[subject.names[feature]]
    along = way if named is None else torch.eye(len(gap), dtype=gap.dtype)[named]
    aside = way - (way @ along) * along
    aside = aside / aside.norm() if aside.norm() > 1e-6 else torch.zeros_like(aside)
    rate, here = float(subject.table[:, feature].mean()), float(Y[:, feature].mean())
    factor, line = (rate * (1 - rate)) ** 0.5, outputs.clean @ along
    on, off = rate / max(here, 1e-12), (1 - rate) / max(1 - here, 1e-12)
    weights = torch.from_numpy(np.where(Y[:, feature] > 0, on, off))
    spread = float(_variance(line, weights).sqrt())
    variance = sum(float(_variance(some, weights).sum()) for some in outputs.clean.split(COLUMNS, 1))
    left = y * (line - y * (gap @ along))
    by_unit = np.bincount(units, left.numpy())
    error = float((by_unit**2).sum() ** 0.5 / y.square().sum().clamp(min=1e-12))
    unit = factor / max(spread, 1e-12)
    step = 1.0 if subject.weigh is None else max(spread, 1e-12)
    return Target(along, aside, factor, spread, float(gap @ along) * unit, error * unit, variance, step)


def _variance(values: Float[Tensor, "places *outputs"], weights: Float[Tensor, " places"]) -> Float[Tensor, "*outputs"]:
    """Variance where places with the label count as often as rows have it: chosen places have more."""
    shares = weights / weights.sum()
    return shares @ (values - shares @ values).square() * (len(values) / max(1, len(values) - 1))


@torch.no_grad()
def run(subject: Subject, x: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows outputs"]:
    """The rest of the network, in blocks."""
    dtype, block, parts, start = subject.activations.dtype, 16, list[Tensor](), 0
    while start < len(x):
        parts.append(subject.downstream(x[start : start + block].to(dtype), at[start : start + block]).double())
        start += block
        block = int(np.clip(NUMBERS // max(1, parts[0].shape[1]), 16, BLOCK))
    return torch.cat(parts)
