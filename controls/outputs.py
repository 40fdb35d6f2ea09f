"""The outputs of the rest of a network, clean and moved, as seen from each feature's target."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.subject import Subject

BLOCK = 4096
"""Rows that the rest of the network is asked about at a time."""


@dataclass(frozen=True)
class Outputs:
    """The clean outputs at the places, in units of their spread."""

    scale: Float[Tensor, " outputs"]
    """1 / standard deviation; 0 for outputs that never change."""
    clean: Float[Tensor, "places outputs"]
    """Outputs times `scale`, less their mean."""
    targets: Float[Tensor, "features outputs"]
    """Each feature's target: an output, or the way that outputs differ with the label, other labels fixed."""
    gaps: Float[Tensor, "features outputs"]
    """That way, of length 1, also where an output is named."""
    spreads: Float[Tensor, " features"]
    """Standard deviation of the clean outputs along the target."""


@torch.no_grad()
def clean_outputs(subject: Subject, Y: Int[np.ndarray, "rows features"], others: list[list[int]]) -> Outputs:
    """Run the rest of the network at every place."""
    places = torch.from_numpy(subject.places)
    values = run(subject, subject.activations[places], torch.arange(len(places)))
    sd = values.std(0)
    scale = torch.where(sd > 1e-9 * sd.max(), 1 / sd.clamp(min=1e-30), 0.0)
    clean = (values - values.mean(0)) * scale
    labels = torch.from_numpy(Y[subject.places]).double()
    gaps = []
    for f, fixed in enumerate(others):
        Z = torch.cat([torch.ones(len(labels), 1).double(), labels[:, [f, *fixed]]], 1)
        gap = torch.linalg.lstsq(Z, clean, driver="gelsd").solution[1]
        gaps.append(gap / gap.norm().clamp(min=1e-30))
    named = [subject.targets[name] for name in subject.names]
    eye = torch.eye(clean.shape[1], dtype=clean.dtype)
    targets = torch.stack([gap if t is None else eye[t] for t, gap in zip(named, gaps, strict=True)])
    return Outputs(scale, clean, targets, torch.stack(gaps), (clean @ targets.mT).std(0))


@torch.no_grad()
def run(subject: Subject, x: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows outputs"]:
    """The rest of the network, in blocks."""
    dtype = subject.activations.dtype
    parts = [
        subject.downstream(x[start : start + BLOCK].to(dtype), at[start : start + BLOCK])
        for start in range(0, len(x), BLOCK)
    ]
    return torch.cat(parts).double()


@dataclass(frozen=True)
class Moved:
    """A movement of the outputs, seen from a feature's target."""

    on: Float[Tensor, " draws"]
    """Along the target, as a correlation; signed."""
    off: Float[Tensor, " draws"]
    """Root mean square of what is left in the other outputs."""


def seen(outputs: Outputs, feature: int, movement: Float[Tensor, "draws outputs"], rate: float) -> Moved:
    """Movements in units of the outputs' spread, taken apart."""
    factor = (rate * (1 - rate)) ** 0.5
    target, gap = outputs.targets[feature], outputs.gaps[feature]
    on = movement @ target * factor / outputs.spreads[feature].clamp(min=1e-12)
    aside = gap - (gap @ target) * target
    aside = aside / aside.norm() if aside.norm() > 1e-6 else torch.zeros_like(gap)
    rest = movement - torch.outer(movement @ target, target) - torch.outer(movement @ aside, aside)
    return Moved(on, rest.square().mean(1).sqrt() * factor)
